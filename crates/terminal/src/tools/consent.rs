//! Which commands run without being asked for.

/// Patterns that the user has given, by options, configuration or answers.
#[derive(Clone, Debug, Default)]
pub struct Consent {
    patterns: Vec<String>,
}

impl Consent {
    /// Consent to what the patterns match, and to nothing else.
    pub fn new(patterns: Vec<String>) -> Self {
        Self { patterns }
    }

    /// Consents to what one more pattern matches.
    pub fn add(&mut self, pattern: &str) {
        self.patterns.push(pattern.to_owned());
    }

    /// Whether the user has consented to a command.
    pub fn covers(&self, command: &str) -> bool {
        self.patterns.iter().any(|pattern| matches(pattern, command))
    }

    /// What was consented to.
    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }
}

/// Whether a pattern matches a whole command. `*` stands for any text in which a shell sees nothing but words:
/// `git log *` does not match `git log; rm -r .`. A pattern that ends in a space and `*` also matches without
/// them.
pub fn matches(pattern: &str, command: &str) -> bool {
    let (pattern, command) = (pattern.trim(), command.trim());
    if command.is_empty() {
        return false;
    }
    let shorter = pattern.strip_suffix(" *");
    shorter.is_some_and(|shorter| glob(shorter, command)) || glob(pattern, command)
}

/// Matching by one pass with one place to return to: the last star.
fn glob(pattern: &str, command: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let command: Vec<char> = command.chars().collect();
    let (mut p, mut c) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while c < command.len() {
        if pattern.get(p) == Some(&'*') {
            star = Some((p, c));
            p += 1;
        } else if pattern.get(p) == Some(&command[c]) {
            p += 1;
            c += 1;
        } else if let Some((star_p, star_c)) = star {
            // The star takes one character more, if it may.
            if !is_plain(command[star_c]) {
                return false;
            }
            star = Some((star_p, star_c + 1));
            p = star_p + 1;
            c = star_c + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&rest| rest == '*')
}

/// Whether a shell (of Unix or of Windows) takes a character for part of a word or for a space between words.
fn is_plain(character: char) -> bool {
    !character.is_control()
        && !matches!(
            character,
            ';' | '&'
                | '|'
                | '<'
                | '>'
                | '`'
                | '$'
                | '('
                | ')'
                | '\\'
                | '"'
                | '\''
                | '%'
                | '^'
                | '!'
                | '#'
        )
}
