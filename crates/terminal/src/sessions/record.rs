//! The lines of a session's file, and the talk that they tell.

use chat::Message;
use serde::{Deserialize, Serialize};

/// The version of the format that this program writes, and the only one that it reads.
pub const VERSION: u32 = 1;
/// Messages that a talk may have.
const MAX_MESSAGES: usize = 100_000;

/// A line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Record {
    /// The first line.
    Session {
        /// Version of the format.
        version: u32,
        /// The session's id, which is the file's name, too.
        id: String,
        /// When it began, in seconds since 1970.
        created: u64,
    },
    /// Who answers from here on.
    Model {
        /// As the user named it.
        name: String,
    },
    /// What the model is told to be from here on.
    System {
        /// The text, or nothing.
        text: Option<String>,
    },
    /// Somebody said something, or a tool did.
    Message {
        /// In the form of the OpenAI API.
        message: Message,
    },
    /// The talk goes on from its first messages; the others are taken back.
    Keep {
        /// How many stay.
        messages: usize,
    },
    /// What the user calls the talk.
    Name {
        /// The name.
        name: String,
    },
}

/// A talk as its records tell it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Talk {
    /// The model that answered last.
    pub model: Option<String>,
    /// What it is told to be.
    pub system: Option<String>,
    /// What was said, without the system message.
    pub messages: Vec<Message>,
    /// What the user calls it.
    pub name: Option<String>,
}

impl Talk {
    /// Takes a record, unless it makes no sense here; the error says why.
    pub fn apply(&mut self, record: Record) -> Result<(), String> {
        match record {
            Record::Session { .. } => return Err("a session begins inside another".to_owned()),
            Record::Model { name } => self.model = Some(name),
            Record::System { text } => self.system = text,
            Record::Name { name } => self.name = Some(name),
            Record::Keep { messages } if messages > self.messages.len() => {
                let n = self.messages.len();
                return Err(format!("it keeps {messages} of {n} messages"));
            }
            Record::Keep { messages } => self.messages.truncate(messages),
            Record::Message { message } => {
                let role = message.role.as_str();
                if !matches!(role, "user" | "assistant" | "tool") {
                    return Err(format!("a message has the role {role:?}"));
                }
                if !message.content.is_string() && !message.content.is_null() {
                    return Err("a message's content is not a text".to_owned());
                }
                if self.messages.len() >= MAX_MESSAGES {
                    return Err(format!("there are more than {MAX_MESSAGES} messages"));
                }
                self.messages.push(message);
            }
        }
        Ok(())
    }

    /// The beginning of what the user said first.
    pub fn title(&self) -> Option<&str> {
        let first = self.messages.iter().find(|message| message.role == "user")?;
        first.content.as_str()
    }
}
