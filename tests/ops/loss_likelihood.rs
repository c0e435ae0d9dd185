//! Which function does what is tested by loss; here, groups beyond a CTA's.

use crate::loss::check_groups;

#[test]
fn many_sequences() {
    check_groups("sft_mean", &[1, 128, 131], |_| 1);
    check_groups("unlikelihood", &[131], |_| 2);
}
