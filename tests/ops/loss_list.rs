//! Which function does what is tested by loss; here, lists of every length and lists beyond a CTA's.

use crate::loss::check_groups;

#[test]
fn lists_of_every_length() {
    for name in ["tpo", "infonca", "nca", "exo"] {
        check_groups(name, &[1, 31, 37], |group| 2 + group % 31);
    }
}
