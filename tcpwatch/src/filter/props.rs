//! What holds for any expression and any text.

use std::net::IpAddr;

use proptest::prelude::*;

use super::expr::{Expr, Network, Op, Term};
use super::facts::{Fact, TABLE, Takes};
use super::parse::parse;
use super::{Subject, Value};

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![Just(Op::Equal), Just(Op::Less), Just(Op::AtMost), Just(Op::More), Just(Op::AtLeast)]
}

fn network() -> impl Strategy<Value = Network> {
    (any::<IpAddr>(), 0..=128_u8)
        .prop_map(|(address, len)| Network::new(address, len).unwrap_or_else(|| Network::host(address)))
}

fn term() -> impl Strategy<Value = Term> {
    let fact = 0..TABLE.len();
    let of_table = (fact, op(), any::<u64>(), ".{0,12}", network(), any::<bool>()).prop_map(
        |(index, op, number, name, network, known)| {
            let entry = &TABLE[index];
            match entry.takes {
                _ if known => Term::Known(entry.fact),
                Takes::Port => Term::Number(entry.fact, op, number & 0xffff),
                Takes::Number | Takes::Time | Takes::Bytes => Term::Number(entry.fact, op, number),
                Takes::User => Term::Number(entry.fact, Op::Equal, number & 0xffff_ffff),
                Takes::Address => Term::Address(entry.fact, network),
                Takes::OneOf(names) => {
                    let names = names();
                    Term::Text(entry.fact, names[number as usize % names.len()].to_owned())
                }
                Takes::Name | Takes::Path => Term::Text(entry.fact, name),
            }
        },
    );
    prop_oneof![8 => of_table, 1 => any::<bool>().prop_map(Term::Family)]
}

fn expr() -> impl Strategy<Value = Expr> {
    term().prop_map(Expr::Term).prop_recursive(5, 24, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|expr| Expr::Not(Box::new(expr))),
            proptest::collection::vec(inner.clone(), 2..4).prop_map(Expr::And),
            proptest::collection::vec(inner, 2..4).prop_map(Expr::Or),
        ]
    })
}

/// Knows nothing, or of every fact the same.
struct Fixed(Option<u64>);

impl Subject for Fixed {
    fn fact(&self, _: Fact) -> Option<Value<'_>> {
        self.0.map(Value::Number)
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(expr in expr()) {
        let text = expr.to_string();
        if text.len() <= 4096 {
            prop_assert_eq!(parse(&text, &|_| None), Ok(expr), "{}", text);
        }
    }

    #[test]
    fn any_text_is_an_expression_or_an_error_within_it(text in ".{0,80}") {
        if let Err(error) = parse(&text, &|_| None) {
            prop_assert!(error.span().end <= text.len() && text.get(error.span()).is_some(), "{}", error);
            prop_assert!(!error.what().is_empty() && error.to_string().lines().count() == 3);
        }
    }

    #[test]
    fn so_does_any_row_of_words(words in proptest::collection::vec(
        prop_oneof![Just("port"), Just("local"), Just("and"), Just("or"), Just("not"), Just("("), Just(")"), Just(">"),
            Just("443"), Just("srtt"), Just("5ms"), Just("state"), Just("LISTEN"), Just("known"), Just("\""), Just("!")],
        0..24,
    )) {
        let text = words.join(" ");
        match parse(&text, &|_| None) {
            Ok(expr) => prop_assert_eq!(parse(&expr.to_string(), &|_| None), Ok(expr)),
            Err(error) => prop_assert!(text.get(error.span()).is_some(), "{}", error),
        }
    }

    #[test]
    fn not_turns_what_is_known_and_leaves_the_rest(expr in expr(), number in any::<Option<u64>>()) {
        let subject = Fixed(number);
        let about = expr.about(&subject);
        prop_assert_eq!(Expr::Not(Box::new(expr.clone())).about(&subject), about.map(|is| !is));
        let both = Expr::And(vec![expr.clone(), Expr::Not(Box::new(expr.clone()))]).about(&subject);
        let either = Expr::Or(vec![expr.clone(), Expr::Not(Box::new(expr))]).about(&subject);
        prop_assert_eq!((both, either), (about.map(|_| false), about.map(|_| true)));
    }
}
