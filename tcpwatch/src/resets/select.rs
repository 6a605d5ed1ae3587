//! What an expression selects among resets: the evidence that is kept, and the causes and stacks that occur in it.

use crate::api::resets::Resets;
use crate::filter::Filter;

/// Keeps what `filter` selects; tells how many resets it chose from.
pub(super) fn select(resets: &mut Resets, filter: &Filter) -> usize {
    let kept = resets.newest.len();
    resets.newest.retain(|reset| filter.selects(reset));
    let newest = &resets.newest;
    resets.causes.retain(|cause| {
        newest.iter().any(|reset| {
            (&reset.direction, &reset.origin, &reset.cause) == (&cause.direction, &cause.origin, &cause.cause)
        })
    });
    resets.reasons.retain(|reason| newest.iter().any(|reset| reset.reason.as_ref() == Some(&reason.reason)));
    resets.stacks.retain(|stack| newest.iter().any(|reset| reset.stack.as_ref() == Some(&stack.stack)));
    kept
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::resets;
    use super::*;

    #[test]
    fn an_expression_keeps_what_it_selects_and_what_belongs_to_that() {
        let all = resets();
        for reset in &all.newest {
            let Some(port) = reset.local_port else { continue };
            let mut chosen = all.clone();
            let from = select(&mut chosen, &format!("local port {port}").parse().unwrap());
            assert_eq!(from, all.newest.len());
            assert!(chosen.newest.iter().all(|kept| kept.local_port == Some(port)) && chosen.newest.contains(reset));
            assert!(chosen.causes.iter().all(|cause| chosen.newest.iter().any(|reset| reset.cause == cause.cause)));
        }
        let mut none = all.clone();
        select(&mut none, &"peer 203.0.113.77 and unread > 1GB".parse().unwrap());
        assert!(none.newest.is_empty() && none.causes.is_empty() && none.stacks.is_empty());
        let mut same = all.clone();
        select(&mut same, &"kind reset_sent or kind reset_received".parse().unwrap());
        assert_eq!(same.newest, all.newest);
    }
}
