//! What the commands do.

use std::time::SystemTime;

use anyhow::Context;

use crate::command::{COMMANDS, Command, Think};
use crate::input::Entered;
use crate::sessions::Summary;
use crate::talk::{Talk, shown};
use crate::text::{clean, one_line};

/// Sessions that are listed.
const LISTED: usize = 20;
/// Characters of a talk's beginning in the list.
const TITLE: usize = 50;

impl Talk<'_> {
    pub(super) fn command(&mut self, command: Command) -> anyhow::Result<()> {
        match command {
            // It ended the loop that calls this.
            Command::Quit => Ok(()),
            Command::Help => self.help(),
            Command::New => {
                self.journal.restart();
                Ok(self.screen.aside("A new talk.")?)
            }
            Command::System(text) => self.system(text),
            Command::Model(name) => self.model(name),
            Command::Save(name) => self.save(name),
            Command::Load(key) => self.load(key),
            Command::Sessions => self.sessions(),
            Command::Retry => self.retry(),
            Command::Edit(text) => self.edit(text),
            Command::Stats => self.stats(),
            Command::Tools(None) => self.say_lines(&self.tools.lines()),
            Command::Tools(Some((name, on))) => {
                if !self.tools.switch(&name, on) {
                    return self.refuse(&format!("there is no tool {name}; /tools lists them"));
                }
                self.say_lines(&self.tools.lines())
            }
            Command::Think(think) => self.think(think),
        }
    }

    fn say_lines(&mut self, lines: &[String]) -> anyhow::Result<()> {
        Ok(self.screen.say(&lines.join("\n"))?)
    }

    fn help(&mut self) -> anyhow::Result<()> {
        let usage = |name: &str, takes: &str| format!("/{name} {takes}").trim_end().to_owned();
        let column =
            COMMANDS.iter().map(|(name, takes, _)| usage(name, takes).len()).max().unwrap_or(0);
        let narrow = self.screen.width() < 2 * column + 10;
        let mut lines = Vec::new();
        for (name, takes, help) in COMMANDS {
            let usage = usage(name, takes);
            lines.push(match narrow {
                true => format!("{usage}: {help}"),
                false => format!("{usage:column$}  {help}"),
            });
        }
        lines.push(
            "Enter sends, Alt-Enter or Ctrl-J begins a line, Ctrl-R searches the history."
                .to_owned(),
        );
        lines.push(
            "Ctrl-C stops a reply, Ctrl-D ends. A message that begins with / is written with //."
                .to_owned(),
        );
        self.say_lines(&lines)
    }

    fn system(&mut self, text: Option<String>) -> anyhow::Result<()> {
        if let Some(text) = text {
            self.journal.set_system(Some(text));
        }
        let system = self.journal.talk().system.clone();
        let system = system.unwrap_or_else(|| "There is no system message.".to_owned());
        Ok(self.screen.say(&system)?)
    }

    fn model(&mut self, name: Option<String>) -> anyhow::Result<()> {
        if let Some(name) = name {
            let before = self.partner.as_ref().map(|partner| partner.name().to_owned());
            if let Err(error) = self.open(Some(&name)) {
                // A talk without a model helps nobody.
                if let Some(before) = before {
                    self.open(Some(&before)).context("going back to the model before")?;
                }
                return Err(error);
            }
        }
        let lines = self.partner.as_ref().map(|partner| partner.describe()).unwrap_or_default();
        self.say_lines(&lines[..lines.len().min(1)])
    }

    fn save(&mut self, name: Option<String>) -> anyhow::Result<()> {
        if let Some(name) = name {
            self.journal.set_name(&name)?;
        }
        let text = match self.journal.file() {
            Some(file) => format!("The talk is kept as {} in {}.", file.id(), shown(file.path())),
            None if !self.journal.is_kept() => "The talk is not kept.".to_owned(),
            None => "The talk will be kept from its first message on.".to_owned(),
        };
        Ok(self.screen.say(&text)?)
    }

    fn load(&mut self, key: Option<String>) -> anyhow::Result<()> {
        let Some(key) = key else { return self.sessions() };
        self.journal.resume(self.store.as_deref(), &key)?;
        // Who answers stays; the talk is told.
        let name = self.partner.as_ref().map(|partner| partner.name().to_owned());
        if let Some(name) = name {
            self.journal.set_model(&name);
        }
        self.show_resumed()
    }

    fn sessions(&mut self) -> anyhow::Result<()> {
        let listed = match &self.store {
            Some(store) => store.list(LISTED)?,
            None => Vec::new(),
        };
        if listed.is_empty() {
            return Ok(self.screen.say("There are no earlier talks.")?);
        }
        let lines: Vec<String> = listed
            .iter()
            .enumerate()
            .map(|(index, summary)| summary_line(index + 1, summary))
            .collect();
        self.say_lines(&lines)?;
        Ok(self.screen.aside("/load and a number, id or name goes on with one.")?)
    }

    fn retry(&mut self) -> anyhow::Result<()> {
        let Some(at) = self.last_question() else {
            return self.refuse("there is no message to answer again");
        };
        self.attempt += 1;
        let attempt = self.attempt;
        self.journal.try_after(at + 1);
        self.answer(attempt)
    }

    fn edit(&mut self, text: Option<String>) -> anyhow::Result<()> {
        let Some(at) = self.last_question() else {
            return self.refuse("there is no message to change");
        };
        let old = self.journal.talk().messages[at].content.as_str().unwrap_or_default().to_owned();
        let text = match text {
            Some(text) => text,
            None if !self.input.is_person() => return self.refuse("/edit takes the new text here"),
            // An editor shows what it is given as it is.
            None => match self.input.message("> ", &clean(&old))? {
                Entered::Line(line) if !line.trim().is_empty() => line.trim().to_owned(),
                _ => return Ok(self.screen.aside("The message stays as it is.")?),
            },
        };
        self.journal.try_after(at);
        self.message(&text)
    }

    /// Where the user's last message is.
    fn last_question(&self) -> Option<usize> {
        self.journal.talk().messages.iter().rposition(|message| message.role == "user")
    }

    fn stats(&mut self) -> anyhow::Result<()> {
        let mut lines = self.partner.as_ref().map(|partner| partner.describe()).unwrap_or_default();
        lines.extend(self.numbers.lines());
        let talk = self.journal.talk();
        lines.push(format!("talk: {} messages", talk.messages.len()));
        if let Some(file) = self.journal.file() {
            lines.push(format!("session: {} in {}", file.id(), shown(file.path())));
        }
        self.say_lines(&lines)
    }

    fn think(&mut self, think: Option<Think>) -> anyhow::Result<()> {
        match think {
            Some(Think::On) => self.think = Some(true),
            Some(Think::Off) => self.think = Some(false),
            Some(Think::Show) => self.show_thinking = true,
            Some(Think::Hide) => self.show_thinking = false,
            None => {}
        }
        let state = match self.think {
            Some(true) => "on",
            Some(false) => "off",
            None => "left to the model",
        };
        let visible = if self.show_thinking { "shown" } else { "hidden" };
        Ok(self.screen.say(&format!("thinking: {state}, {visible}"))?)
    }
}

/// A line of the list of sessions.
fn summary_line(number: usize, summary: &Summary) -> String {
    let age = SystemTime::now().duration_since(summary.changed).unwrap_or_default();
    let age = match age.as_secs() / 60 {
        0 => "just now".to_owned(),
        minutes @ 1..=59 => format!("{minutes} min ago"),
        minutes @ 60..=2879 => format!("{} h ago", minutes / 60),
        minutes => format!("{} days ago", minutes / 1440),
    };
    let about = match &summary.talk {
        Ok(talk) => {
            let name = talk.name.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
            let title = one_line(talk.title().unwrap_or("(nothing said)"));
            let begin: String = title.chars().take(TITLE).collect();
            let more = if begin.len() < title.len() { "..." } else { "" };
            format!("{name}{begin}{more}")
        }
        Err(error) => format!("cannot be read: {error}"),
    };
    format!("{number:3}  {}  {age}  {}", summary.id, one_line(&about))
}
