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

/// Unicode's marks for bidirectional text: they reorder what a reader sees.
fn turns_direction(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn a_file_does_not_steer_the_terminal() {
        assert_eq!(printable("a\x1b[31m\u{9b}b\nc\u{202e}é<|x|>"), "a\\u{1b}[31m\\u{9b}b c\\u{202e}é<|x|>");
        assert_eq!(printable(&"x".repeat(301)), "x".repeat(300) + "…");
    }
}
