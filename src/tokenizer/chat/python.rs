//! What templates expect of Python: `json.dumps` and `strftime`.

use jiff::ZonedDateTime;
use jiff::fmt::strtime::{BrokenDownTime, Config, PosixCustom};

/// Blanks that JSON may be indented by.
const MAX_INDENT: usize = 64;

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`; `None` for an indent beyond reason.
pub(super) fn json(value: &serde_json::Value, indent: Option<usize>) -> Option<String> {
    if indent.is_some_and(|n| n > MAX_INDENT) {
        return None;
    }
    let mut out = String::new();
    dump(value, indent, 0, &mut out);
    Some(out)
}

fn dump(value: &serde_json::Value, indent: Option<usize>, depth: usize, out: &mut String) {
    let line = |out: &mut String, depth: usize| {
        if let Some(n) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', n * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value {
        serde_json::Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(out, depth + 1);
                dump(item, indent, depth + 1, out);
            }
            line(out, depth);
            out.push(']');
        }
        serde_json::Value::Object(map) if !map.is_empty() => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(out, depth + 1);
                out.push_str(&serde_json::Value::from(key.as_str()).to_string());
                out.push_str(": ");
                dump(item, indent, depth + 1, out);
            }
            line(out, depth);
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

/// Python's `datetime.strftime` in the C locale, as glibc carries it out: codes that it does not know stay as they are.
pub(super) fn strftime(format: &str, time: &ZonedDateTime) -> String {
    let config = Config::new().custom(PosixCustom::new()).lenient(true);
    BrokenDownTime::from(time).to_string_with_config(&config, codes(format)).unwrap_or_else(|_| format.to_owned())
}

/// The format in jiff's codes where they differ: `%f` has six digits, `%E` and `%O` before a code change nothing in the C
/// locale, and codes that only jiff knows are text.
fn codes(format: &str) -> String {
    let mut out = String::with_capacity(format.len());
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut flags = String::new();
        while let Some(flag) = chars.next_if(|c| "-_0^#".contains(*c) || c.is_ascii_digit()) {
            flags.push(flag);
        }
        if let Some('E' | 'O') = chars.peek() {
            chars.next();
        }
        match chars.next() {
            Some('f') => out.push_str("%6f"),
            Some(code) if code.is_ascii_alphabetic() && !"QqNJKLivEO".contains(code) => {
                out.push('%');
                out.push_str(&flags);
                out.push(code);
            }
            Some('%') if flags.is_empty() => out.push_str("%%"),
            Some(other) => {
                out.push_str("%%");
                out.push_str(&flags);
                out.push(other);
            }
            None => {
                out.push_str("%%");
                out.push_str(&flags);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values are CPython's on glibc.
    #[test]
    fn pythons_codes() {
        let time: ZonedDateTime = "2024-02-09T15:04:05.000678+01:00[Europe/Berlin]".parse().unwrap();
        for (format, expected) in [
            ("%d %b %Y %H:%M:%S %A|%F %%%q", "09 Feb 2024 15:04:05 Friday|2024-02-09 %%q"),
            ("%-d %B %Y, %I:%M %p, day %j, week %W, %Z", "9 February 2024, 03:04 PM, day 040, week 06, CET"),
            ("%a %h %y %m %e %U %z", "Fri Feb 24 02  9 05 +0100"),
            ("%c|%x|%X|%D|%T|%R", "Fri Feb  9 15:04:05 2024|02/09/24|15:04:05|02/09/24|15:04:05|15:04"),
            ("%f %G %V %g %u %w %C", "000678 2024 06 24 5 5 20"),
            ("%-m/%-d/%-y %-I:%-M %_d %^a %Ey %Od", "2/9/24 3:4  9 FRI 24 09"),
            ("%s|%n|%t|%", "1707487445|\n|\t|%"),
        ] {
            assert_eq!(strftime(format, &time), expected, "{format}");
        }
    }

    #[test]
    fn pythons_json() {
        let value = serde_json::json!({ "a": [1, "ü"], "b": {} });
        assert_eq!(json(&value, None).unwrap(), "{\"a\": [1, \"ü\"], \"b\": {}}");
        assert_eq!(json(&serde_json::json!({ "k": [1] }), Some(2)).unwrap(), "{\n  \"k\": [\n    1\n  ]\n}");
        assert_eq!(json(&value, Some(1_000_000_000_000)), None);
    }
}
