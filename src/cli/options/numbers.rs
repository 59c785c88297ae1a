//! Values of flags that are numbers of a range which clap does not know.

use std::str::FromStr;

pub(super) fn number<T: FromStr>(text: &str, good: impl Fn(&T) -> bool, expected: &str) -> Result<T, String> {
    text.parse::<T>().ok().filter(good).ok_or_else(|| format!("expected {expected}"))
}

pub(super) fn at_least_zero(text: &str) -> Result<f32, String> {
    number(text, |x: &f32| x.is_finite() && *x >= 0.0, "a number, 0 or above")
}

pub(super) fn above_zero_f32(text: &str) -> Result<f32, String> {
    number(text, |x: &f32| x.is_finite() && *x > 0.0, "a number above 0")
}

pub(super) fn above_zero_f64(text: &str) -> Result<f64, String> {
    number(text, |x: &f64| x.is_finite() && *x > 0.0, "a number above 0")
}

pub(super) fn at_least_one(text: &str) -> Result<f64, String> {
    number(text, |x: &f64| x.is_finite() && *x >= 1.0, "a number, 1 or above")
}

pub(super) fn probability(text: &str) -> Result<f32, String> {
    number(text, |x: &f32| (0.0..=1.0).contains(x), "a number from 0 to 1")
}
