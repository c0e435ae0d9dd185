//! Which function, map and flag does what is tested by loss; here, groups beyond a CTA's.

use crate::loss::check_groups;

#[test]
fn many_pairs() {
    for name in ["dpo", "simpo", "orpo"] {
        check_groups(name, &[1, 128, 131], |_| 2);
    }
}
