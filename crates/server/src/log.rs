//! The log: lines on standard error.

use std::io::{Write, stderr};

/// Writes a line. A server whose log nobody reads any more goes on.
pub(crate) fn line(text: &str) {
    drop(writeln!(stderr(), "{}", plain(text)));
}

/// A text without what a terminal would obey and what would look like a line of its own: clients have a say
/// in what is logged.
fn plain(text: &str) -> String {
    let is_reordering = |c| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let is_line = |c| matches!(c, '\u{2028}' | '\u{2029}');
    let is_harmful = |c: char| c.is_control() || is_reordering(c) || is_line(c);
    text.replace(is_harmful, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_and_commands_nothing() {
        let text =
            "POST /a 400: \u{1b}[2Jgone\r\n127.0.0.1 GET / 200\u{9b}1m\u{202e}\u{2028}caf\u{e9}";
        let marked = text.replace(|c: char| "\u{1b}\r\n\u{9b}\u{202e}\u{2028}".contains(c), "?");
        assert_eq!(plain(text).replace('\u{fffd}', "?"), marked);
    }
}
