//! A reply as it comes: thinking pale, the answer as Markdown.

use std::io;
use std::time::{Duration, Instant};

use crate::markdown::{Look, MarkdownStream};
use crate::screen::Screen;
use crate::text::{Line, Span, Style, clean, one_line, wrap};

/// The screen is rewritten at most so often.
const FRAME: Duration = Duration::from_millis(30);
/// What stands before thinking, also where nothing is pale.
const THINKING_MARK: &str = "\u{250a} ";

/// One reply on the screen.
pub struct View {
    show_thinking: bool,
    look: Look,
    part: Part,
    /// Final lines that wait for the next frame.
    ready: Vec<Line>,
    /// Characters of thinking that is not shown.
    hidden: usize,
    /// Whether something was written, from which the next part is set off.
    begun: bool,
    drawn: Option<Instant>,
}

/// What is being written.
enum Part {
    None,
    /// The last line of thinking so far.
    Thinking(String),
    Answer(MarkdownStream),
}

impl View {
    /// An empty reply.
    pub fn new(screen: &Screen, show_thinking: bool) -> Self {
        let look = Look { width: screen.width(), colour: screen.colour() };
        let (part, ready) = (Part::None, Vec::new());
        Self { show_thinking, look, part, ready, hidden: 0, begun: false, drawn: None }
    }

    /// More thinking.
    pub fn thinking(&mut self, screen: &mut Screen, text: &str) -> io::Result<()> {
        if !self.show_thinking {
            self.hidden += text.chars().count();
            if self.due() {
                screen.progress(&format!("thinking: {} characters", self.hidden))?;
            }
            return Ok(());
        }
        if !matches!(self.part, Part::Thinking(_)) {
            self.end_part();
            self.part = Part::Thinking(String::new());
        }
        let Part::Thinking(line) = &mut self.part else { return Ok(()) };
        line.push_str(&clean(text));
        // Whole lines are final.
        while let Some(at) = line.find('\n') {
            let rest = line.split_off(at + 1);
            let whole = std::mem::replace(line, rest);
            let whole = whole.trim_end();
            if self.begun || !whole.is_empty() {
                self.ready.extend(thinking_lines(whole, self.look));
                self.begun = true;
            }
        }
        self.draw(screen, false)
    }

    /// More of the answer.
    pub fn answer(&mut self, screen: &mut Screen, text: &str) -> io::Result<()> {
        if !screen.rendered() {
            self.end_part();
            screen.update(&std::mem::take(&mut self.ready), &[])?;
            let text = if matches!(self.part, Part::None) && !self.begun {
                text.trim_start()
            } else {
                text
            };
            self.begun |= !text.is_empty();
            return screen.source(text);
        }
        if !matches!(self.part, Part::Answer(_)) {
            if text.trim().is_empty() {
                return Ok(());
            }
            self.end_part();
            self.part = Part::Answer(MarkdownStream::new(self.look));
        }
        if let Part::Answer(stream) = &mut self.part {
            let lines = stream.push(text);
            self.ready.extend(lines);
        }
        self.draw(screen, false)
    }

    /// A call of a tool has begun; its arguments are shown when they are whole.
    pub fn call(&mut self, screen: &mut Screen, name: &str) -> io::Result<()> {
        self.end_part();
        self.draw(screen, true)?;
        screen.progress(&format!("calling {} ...", one_line(name)))
    }

    /// Shows what waits for the next frame.
    pub fn tick(&mut self, screen: &mut Screen) -> io::Result<()> {
        match self.part {
            Part::None => Ok(()),
            _ => self.draw(screen, true),
        }
    }

    /// Ends what is being written, so that something else can be: a question, or the output of a tool.
    pub fn pause(&mut self, screen: &mut Screen) -> io::Result<()> {
        self.end_part();
        let source = !screen.rendered() && self.begun;
        self.draw(screen, true)?;
        if source { screen.source("\n") } else { Ok(()) }
    }

    fn end_part(&mut self) {
        let lines = match std::mem::replace(&mut self.part, Part::None) {
            Part::None => return,
            Part::Thinking(line) if line.trim().is_empty() => Vec::new(),
            Part::Thinking(line) => thinking_lines(line.trim_end(), self.look),
            Part::Answer(mut stream) => stream.finish(),
        };
        self.ready.extend(lines);
        // Thinking that ends in empty lines is set off by one like any other.
        while self
            .ready
            .last()
            .is_some_and(|line| line.to_text(false).trim() == THINKING_MARK.trim())
        {
            self.ready.pop();
        }
        self.ready.push(Line::default());
    }

    fn draw(&mut self, screen: &mut Screen, now: bool) -> io::Result<()> {
        if !now && !self.due() {
            return Ok(());
        }
        let live = match &self.part {
            _ if !screen.is_live() => Vec::new(),
            Part::None => Vec::new(),
            Part::Thinking(line) if line.is_empty() => Vec::new(),
            Part::Thinking(line) => thinking_lines(line, self.look),
            Part::Answer(stream) => stream.live(screen.rows()),
        };
        self.begun |= !self.ready.is_empty();
        screen.update(&std::mem::take(&mut self.ready), &live)
    }

    fn due(&mut self) -> bool {
        let now = Instant::now();
        let due = self.drawn.is_none_or(|drawn| now.duration_since(drawn) >= FRAME);
        if due {
            self.drawn = Some(now);
        }
        due
    }
}

fn thinking_lines(line: &str, look: Look) -> Vec<Line> {
    let lines = wrap(&[Span::new(line, Style::DIM)], look.width.saturating_sub(2));
    lines.into_iter().map(|line| line.after(THINKING_MARK, Style::DIM)).collect()
}
