//! Ending a generation at a text: stop strings may begin and end anywhere in tokens.

/// Passes text on until a stop string is complete, and holds back what might become one.
#[derive(Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    matched: Option<usize>,
}

impl StopMatcher {
    /// A matcher for these strings; empty ones never match.
    pub fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self { stops, held: String::new(), matched: None }
    }

    /// Takes the next text; gives what can be shown, and whether a stop string was completed. The stop
    /// string itself and what follows it are never shown.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        if self.stops.is_empty() {
            return (text.to_owned(), false);
        }
        self.held.push_str(text);
        let found = self.stops.iter().enumerate();
        let found = found.filter_map(|(index, stop)| Some((self.held.find(stop.as_str())?, index)));
        if let Some((at, index)) = found.min() {
            self.matched = Some(index);
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let shown = self.held.len() - self.held_back();
        let rest = self.held.split_off(shown);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The stop string that was completed.
    pub fn matched(&self) -> Option<&str> {
        self.matched.map(|index| self.stops[index].as_str())
    }

    /// What was held back, when nothing more comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Length of the longest end of the held text that begins a stop string.
    fn held_back(&self) -> usize {
        let mut longest = 0;
        for stop in &self.stops {
            let lengths = stop.char_indices().map(|(index, _)| index).skip(1);
            let fitting = lengths.filter(|&length| self.held.ends_with(&stop[..length]));
            longest = longest.max(fitting.max().unwrap_or(0));
        }
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds a text in pieces of `size` characters.
    fn run(stops: &[&str], text: &str, size: usize) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops.iter().map(|&stop| stop.to_owned()).collect());
        let mut shown = String::new();
        let characters: Vec<char> = text.chars().collect();
        for piece in characters.chunks(size) {
            let (text, stopped) = matcher.push(&piece.iter().collect::<String>());
            shown.push_str(&text);
            if stopped {
                return (shown, true);
            }
        }
        shown.push_str(&matcher.finish());
        (shown, false)
    }

    #[test]
    fn the_result_does_not_depend_on_the_pieces() {
        for size in 1..12 {
            assert_eq!(run(&["END"], "one ENEND two", size), ("one EN".to_owned(), true));
            assert_eq!(run(&["\n\n", "b"], "a\nc\n\nb", size), ("a\nc".to_owned(), true));
            assert_eq!(run(&["END"], "one EN", size), ("one EN".to_owned(), false));
            assert_eq!(run(&["\u{e9}\u{e9}"], "\u{e9}a\u{e9}", size).0, "\u{e9}a\u{e9}");
            assert_eq!(run(&[], "text", size), ("text".to_owned(), false));
        }
    }

    #[test]
    fn text_that_cannot_be_a_stop_is_shown_at_once() {
        let mut matcher = StopMatcher::new(vec!["stop".to_owned()]);
        assert_eq!(matcher.push("hello s"), ("hello ".to_owned(), false));
        assert_eq!(matcher.push("ea"), ("sea".to_owned(), false));
    }
}
