//! What a model, a tool or a file says, made safe to print.
//!
//! A terminal obeys control characters: an escape sequence in a reply could rewrite what was shown before,
//! change the window's title or answer in the user's name. None reaches it: whatever is not a line feed
//! or a tab and controls a terminal, or reorders text that is read, becomes a visible sign.

use std::borrow::Cow;

/// The text with every control character but line feed and tab made visible. Carriage returns vanish,
/// and so does the difference between kinds of line ends.
pub fn clean(text: &str) -> Cow<'_, str> {
    if text.chars().any(is_control) {
        Cow::Owned(text.chars().filter(|&c| c != '\r').map(visible).collect())
    } else {
        Cow::Borrowed(text)
    }
}

/// The same in one line: line feeds and tabs become spaces.
pub fn one_line(text: &str) -> String {
    clean(text).replace(['\n', '\t'], " ")
}

fn visible(character: char) -> char {
    match character {
        _ if !is_control(character) => character,
        // The pictures of control characters stand in their order.
        '\u{0}'..='\u{1f}' => char::from_u32(0x2400 + character as u32).unwrap_or('\u{fffd}'),
        '\u{7f}' => '\u{2421}',
        _ => '\u{fffd}',
    }
}

fn is_control(character: char) -> bool {
    match character {
        '\n' | '\t' => false,
        // Separators of lines and paragraphs, and what turns the direction of text.
        '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        _ => character.is_control(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_is_left() {
        for code in (0..0x300).chain(0x2000..0x2100) {
            let Some(character) = char::from_u32(code) else { continue };
            let text = format!("a{character}b");
            let cleaned = clean(&text);
            let left = cleaned.chars().find(|&c| c.is_control() && c != '\n' && c != '\t');
            assert_eq!(left, None, "{code:#x}");
            let kept = code >= 0x20 && !character.is_control() && !is_control(character);
            assert_eq!(cleaned == text, kept || matches!(character, '\n' | '\t'), "{code:#x}");
        }
    }

    #[test]
    fn escape_sequences_become_visible() {
        assert_eq!(clean("\u{1b}[2Jhi\u{7}\r\n"), "\u{241b}[2Jhi\u{2407}\n");
        assert_eq!(clean("\u{9b}31m \u{202e}gpj.exe"), "\u{fffd}31m \u{fffd}gpj.exe");
        assert_eq!(one_line("a\nb\tc"), "a b c");
    }
}
