//! Our counters held against the kernel's, and what explains a difference, by name.

use serde::{Deserialize, Serialize};

use super::status::Lost;
use crate::aggregate::snapshot::{Compared, Snapshot};

/// `compared` of `/api/v1/status`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Proof {
    /// Segments retransmitted, and the kernel's RetransSegs.
    pub(crate) retransmitted_segments: Sides,
    /// RSTs sent, and the kernel's OutRsts.
    pub(crate) resets_sent: Sides,
    /// What explains a difference; empty when there is none.
    pub(crate) gaps: Vec<Gap>,
    /// Network namespaces where something was counted and the kernel's counters cannot be read.
    pub(crate) unreadable_namespaces: u64,
    /// The same by network namespace, of those that exist.
    pub(crate) namespaces: Vec<Namespace>,
}

/// One counter, on both sides, since the same moment.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Sides {
    /// What tcpwatch counted.
    pub(crate) ours: u64,
    /// What the kernel counted.
    pub(crate) kernel: u64,
    /// Ours over the kernel's; nothing while the kernel has counted none.
    pub(crate) ratio: Option<f64>,
}

/// A part of a difference.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Gap {
    /// Which counter.
    pub(crate) counter: String,
    /// `recursion`, `allocation`, `ipv6_unroutable`, `table` or `unexplained`.
    pub(crate) name: String,
    /// How many of the difference it may explain; negative: we have fewer than the kernel.
    pub(crate) count: i64,
    /// What that means.
    pub(crate) sentence: String,
}

/// One network namespace.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Namespace {
    /// Its inode number.
    pub(crate) netns: u32,
    /// Segments retransmitted.
    pub(crate) retransmitted_segments: Sides,
    /// RSTs sent.
    pub(crate) resets_sent: Sides,
}

/// A difference that may be explained, and by how much.
struct Candidate {
    name: &'static str,
    most: u64,
    sentence: &'static str,
}

impl Proof {
    /// Of a snapshot; `lost` is what could not be kept.
    pub(super) fn new(snapshot: &Snapshot, lost: &[Lost]) -> Self {
        let (retransmitted_segments, resets_sent) = sides(&snapshot.compared);
        let namespaces = snapshot.namespaces.iter().map(|namespace| {
            let (retransmitted_segments, resets_sent) = sides(&namespace.compared);
            Namespace { netns: namespace.netns, retransmitted_segments, resets_sent }
        });
        let mut gaps = retransmit_gaps(retransmitted_segments, lost);
        gaps.extend(reset_gaps(resets_sent, &snapshot.compared, lost));
        Self {
            retransmitted_segments,
            resets_sent,
            gaps,
            unreadable_namespaces: snapshot.unreadable_namespaces,
            namespaces: namespaces.collect(),
        }
    }
}

fn sides(compared: &Compared) -> (Sides, Sides) {
    let [retransmits, resets] = compared.ratios();
    (
        Sides {
            ours: compared.retransmitted_segments,
            kernel: compared.kernel_retransmitted_segments,
            ratio: retransmits,
        },
        Sides { ours: compared.resets_sent, kernel: compared.kernel_resets_sent, ratio: resets },
    )
}

fn retransmit_gaps(sides: Sides, lost: &[Lost]) -> Vec<Gap> {
    let fewer = [
        recursion(lost, "retransmit"),
        Candidate {
            name: "allocation",
            most: sum(lost, |lost| lost.place == "storage"),
            sentence: "the kernel refused memory for the state of a connection",
        },
        table(lost),
    ];
    gaps("retransmitted_segments", sides, &fewer, &[])
}

fn reset_gaps(sides: Sides, compared: &Compared, lost: &[Lost]) -> Vec<Gap> {
    let fewer = [
        recursion(lost, "reset"),
        Candidate {
            name: "allocation",
            most: compared.kernel_aborts_failed,
            sentence: "the kernel counted a RST that it had no memory for (TCPAbortFailed): none was sent",
        },
        table(lost),
    ];
    let more = [Candidate {
        name: "ipv6_unroutable",
        most: compared.kernel_ipv6_no_routes,
        sentence: "an IPv6 RST without a route back (Ip6OutNoRoutes): none was sent, and the kernel does not count it",
    }];
    gaps("resets_sent", sides, &fewer, &more)
}

/// Of the programs whose names have `word` in them.
fn recursion(lost: &[Lost], word: &str) -> Candidate {
    Candidate {
        name: "recursion",
        most: sum(lost, |lost| lost.place == "recursion" && lost.program.contains(word)),
        sentence: "the kernel did not run our program because it was running on that CPU already",
    }
}

fn table(lost: &[Lost]) -> Candidate {
    Candidate {
        name: "table",
        most: sum(lost, |lost| lost.place == "map" && lost.program == "tcp_send_reset"),
        sentence: "the kernel programs' table of network namespaces was full",
    }
}

fn sum(lost: &[Lost], which: impl Fn(&Lost) -> bool) -> u64 {
    lost.iter().filter(|lost| which(lost)).map(|lost| lost.count).sum()
}

/// Hands the difference out to what may explain it, in order; what is left over is said to be unexplained.
fn gaps(counter: &str, sides: Sides, fewer: &[Candidate], more: &[Candidate]) -> Vec<Gap> {
    let (candidates, sign) = if sides.ours < sides.kernel { (fewer, -1) } else { (more, 1) };
    let mut left = sides.ours.abs_diff(sides.kernel);
    let mut gaps = Vec::new();
    let mut gap = |name: &str, count: u64, sentence: &str| {
        gaps.push(Gap {
            counter: counter.to_owned(),
            name: name.to_owned(),
            count: sign * i64::try_from(count).unwrap_or(i64::MAX),
            sentence: sentence.to_owned(),
        });
    };
    for candidate in candidates {
        let part = candidate.most.min(left);
        if part > 0 {
            gap(candidate.name, part, candidate.sentence);
            left -= part;
        }
    }
    if left > 0 {
        gap("unexplained", left, "nothing that tcpwatch knows of explains this; please report it");
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(place: &str, program: &str, count: u64) -> Lost {
        Lost { place: place.to_owned(), program: program.to_owned(), count }
    }

    fn named(gaps: &[Gap]) -> Vec<(&str, i64)> {
        gaps.iter().map(|gap| (gap.name.as_str(), gap.count)).collect()
    }

    fn of(ours: u64, kernel: u64) -> Sides {
        Sides { ours, kernel, ratio: None }
    }

    #[test]
    fn equal_counters_have_no_gaps_whatever_was_lost() {
        let lost = [lost("recursion", "tcp_send_reset", 3)];
        assert!(reset_gaps(of(5, 5), &Compared::default(), &lost).is_empty());
        assert!(retransmit_gaps(of(0, 0), &lost).is_empty());
    }

    #[test]
    fn a_difference_is_handed_out_by_name_and_the_rest_is_admitted() {
        let compared = Compared { kernel_aborts_failed: 2, kernel_ipv6_no_routes: 3, ..Compared::default() };
        let lost = [lost("recursion", "tcp_send_reset", 1), lost("recursion", "tcp_retransmit_synack", 9)];
        let fewer = reset_gaps(of(90, 100), &compared, &lost);
        assert_eq!(named(&fewer), [("recursion", -1), ("allocation", -2), ("unexplained", -7)]);
        let more = reset_gaps(of(102, 100), &compared, &lost);
        assert_eq!(named(&more), [("ipv6_unroutable", 2)]);
        assert_eq!(named(&retransmit_gaps(of(95, 100), &lost)), [("recursion", -5)]);
        assert_eq!(named(&retransmit_gaps(of(101, 100), &lost)), [("unexplained", 1)]);
    }
}
