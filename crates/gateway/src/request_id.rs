//! The name of one request through every hop (requirement L4).

use gatehouse_client::context::is_valid_request_id;
use gatehouse_core::ids::RequestId;
use gatehouse_core::{Clock, Entropy};

/// The header, in and out.
pub(crate) const HEADER: &str = "x-request-id";

/// The caller's own id if it is safe to repeat in logs and headers, else a new one.
#[must_use]
pub(crate) fn choose(presented: Option<&str>, clock: &Clock, entropy: &Entropy) -> String {
    presented
        .filter(|id| is_valid_request_id(id))
        .map_or_else(|| RequestId::new(clock, entropy).to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_safe_id_is_kept_and_any_other_replaced() {
        let (clock, entropy) = (Clock::system(), Entropy::system());
        let kept = |text: &str| choose(Some(text), &clock, &entropy) == text;
        assert!(kept("Req_1.2-3"));
        for wrong in ["", "a b", "a\nb", "é", "<script>", &"x".repeat(65)] {
            assert!(!kept(wrong), "{wrong:?} was kept");
        }
        assert!(choose(None, &clock, &entropy).parse::<RequestId>().is_ok());
    }
}
