//! What comparisons in a template cost: the engine takes fuel for the items of lists, and none for the bytes of strings.
//!
//! Operators and filters that compare get their operand through a filter that pays for it ([`pay`], which
//! [`source`](super::source) writes before them); the tests of the same meaning are replaced by ones that pay.

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, State, Value, tests};

/// Bytes that are compared for one step of the engine.
const BYTES: u64 = 256;

/// Takes the fuel for one comparison of `value`; for lists, for bringing their items into an order.
pub(super) fn pay(state: &State, value: &Value) -> Result<(), Error> {
    let mut n_items = 1;
    let bytes = bytes_within(state, value, &mut n_items)?;
    state.consume_fuel(bytes.saturating_mul(1 + u64::from(n_items.ilog2())) / BYTES)
}

/// Takes the fuel for looking `value` up among items of its length: a step for every byte, as their number is unknown.
pub(super) fn pay_for_search(state: &State, value: &Value) -> Result<(), Error> {
    state.consume_fuel(bytes_within(state, value, &mut 1)?)
}

/// Bytes of all strings in a value, which is no deeper than values may be. Items are counted, and paid for.
fn bytes_within(state: &State, value: &Value, n_items: &mut u64) -> Result<u64, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.len() as u64);
    }
    let Some(object) = value.as_object() else { return Ok(0) };
    let mut bytes = 0u64;
    let mut add = |item: &Value| {
        *n_items += 1;
        state.consume_fuel(1)?;
        bytes = bytes.saturating_add(bytes_within(state, item, n_items)?);
        Ok::<(), Error>(())
    };
    match value.kind() {
        ValueKind::Map => {
            for (key, item) in object.try_iter_pairs().into_iter().flatten() {
                add(&key)?;
                add(&item)?;
            }
        }
        ValueKind::Seq | ValueKind::Iterable => object.try_iter().into_iter().flatten().try_for_each(|i| add(&i))?,
        _ => {}
    }
    Ok(bytes)
}

/// A test of two values.
type Test = fn(&Value, &Value) -> bool;

/// Puts tests that pay in the places of those that compare.
pub(super) fn add_tests(env: &mut Environment) {
    fn paid(test: Test) -> impl Fn(&State, Value, Value) -> Result<bool, Error> + Copy {
        move |state, a, b| {
            pay(state, &a)?;
            Ok(test(&a, &b))
        }
    }
    let comparing: [(&[&'static str], Test); 7] = [
        (&["eq", "equalto", "=="], tests::is_eq),
        (&["ne", "!="], tests::is_ne),
        (&["lt", "lessthan", "<"], tests::is_lt),
        (&["le", "<="], tests::is_le),
        (&["gt", "greaterthan", ">"], tests::is_gt),
        (&["ge", ">="], tests::is_ge),
        (&["sameas"], tests::is_sameas),
    ];
    for (names, test) in comparing {
        for name in names {
            env.add_test(*name, paid(test));
        }
    }
    env.add_test("in", |state: &State, value: Value, all: Value| -> Result<bool, Error> {
        pay_for_search(state, &value)?;
        tests::is_in(state, &value, &all)
    });
}
