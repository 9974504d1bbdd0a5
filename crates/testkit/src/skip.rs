//! Tests that lack what they need. One that says nothing and passes proves nothing: so it fails, unless whoever runs it
//! has said that it may be left out.

use std::fmt::Display;

/// `1` allows tests to be left out whose servers are not there. Anything else, and its absence, does not.
pub const VARIABLE: &str = "GATEHOUSE_ALLOW_SKIPS";

/// Says on standard error that the test was left out, and returns for it to end.
///
/// # Panics
/// Unless [`VARIABLE`] is `1`: with `why`, which must tell what to do.
pub fn skip(why: impl Display) {
    judge(std::env::var(VARIABLE).as_deref() == Ok("1"), why);
}

fn judge(may_skip: bool, why: impl Display) {
    assert!(may_skip, "this test could not run: {why}. With {VARIABLE}=1 it is left out instead");
    eprintln!("SKIPPED: {why}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_run_fails_unless_it_may_be_left_out() {
        judge(true, "no server");
        let failed = std::panic::catch_unwind(|| judge(false, "no server: install it")).unwrap_err();
        let told = failed.downcast::<String>().unwrap();
        assert!(told.contains("no server: install it") && told.contains(VARIABLE), "{told}");
    }
}
