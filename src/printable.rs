//! Text that came from a file, made fit for a terminal.

/// The text in one line, fit for a terminal: control characters and marks that turn the writing direction
/// escaped, cut after 300 characters.
pub fn printable(text: &str) -> String {
    printable_within(text, 300)
}

/// [`printable`], cut after `most` characters.
pub fn printable_within(text: &str, most: usize) -> String {
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == most {
            out.push('…');
            break;
        }
        match c {
            '\n' | '\r' | '\t' => out.push(' '),
            c if c.is_control() || turns_direction(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// A report of several lines, fit for a terminal: all but its ends of lines as in [`printable`], and nothing is cut. In a report
/// that is JSON characters are escaped as JSON does it.
pub fn printable_report(text: &str) -> String {
    let is_json = text.starts_with('{');
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push(c),
            c if !(c.is_control() || turns_direction(c)) => out.push(c),
            // All of them are of the basic plane.
            c if is_json => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            '\t' | '\r' => out.push(' '),
            c => out.extend(c.escape_unicode()),
        }
    }
    out
}

/// Unicode's marks for bidirectional text: they reorder what a reader sees.
fn turns_direction(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::{printable, printable_report};

    #[test]
    fn a_file_does_not_steer_the_terminal() {
        assert_eq!(printable("a\x1b[31m\u{9b}b\nc\u{202e}é<|x|>"), "a\\u{1b}[31m\\u{9b}b c\\u{202e}é<|x|>");
        assert_eq!(printable(&"x".repeat(301)), "x".repeat(300) + "…");
        assert_eq!(printable_report("a\x1b\tb\n\u{202e}é\n"), "a\\u{1b} b\n\\u{202e}é\n");
        let json = serde_json::json!({ "a": "b\u{9b}\u{202e}\x1b\né" }).to_string();
        let shown = printable_report(&json);
        assert!(!shown.contains(['\u{9b}', '\u{202e}']), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap()["a"], "b\u{9b}\u{202e}\x1b\né");
    }
}
