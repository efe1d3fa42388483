//! Tests of the module above.

use super::*;

#[test]
fn placeholder() {
    assert!(parse(Kind::Cluster, &[]).is_err());
}
