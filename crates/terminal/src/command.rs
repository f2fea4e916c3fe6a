//! Commands that begin with a slash.

/// What the user wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// List the commands.
    Help,
    /// Begin a talk anew.
    New,
    /// Show the system message, or set it; an empty one removes it.
    System(Option<String>),
    /// Show the model, or talk with another.
    Model(Option<String>),
    /// Tell where the talk is kept, or give it a name.
    Save(Option<String>),
    /// Go on with an earlier talk.
    Load(Option<String>),
    /// List earlier talks.
    Sessions,
    /// Have the last message answered again.
    Retry,
    /// Change the last message and have it answered.
    Edit(Option<String>),
    /// Show numbers.
    Stats,
    /// List tools, or switch one on or off.
    Tools(Option<(String, bool)>),
    /// Show or set what is done about thinking.
    Think(Option<Think>),
    /// End the program.
    Quit,
}

/// What is to be done about thinking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Think {
    /// Think before answering.
    On,
    /// Answer at once.
    Off,
    /// Show the thinking.
    Show,
    /// Do not show it.
    Hide,
}

/// A line that the user typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Typed {
    /// Nothing.
    Empty,
    /// A message for the model.
    Message(String),
    /// A command.
    Command(Command),
}

/// Names, arguments, and what they do: what `/help` shows and Tab completes.
pub const COMMANDS: [(&str, &str, &str); 13] = [
    ("help", "", "show this"),
    ("new", "", "begin a new talk"),
    ("system", "[TEXT|off]", "show, set or remove what the model is told to be"),
    ("model", "[NAME]", "show the model, or go on with another"),
    ("save", "[NAME]", "tell where the talk is kept, or name it"),
    ("load", "[TALK]", "go on with an earlier talk: its number, name, id, or last"),
    ("sessions", "", "list earlier talks"),
    ("retry", "", "have the last message answered again"),
    ("edit", "[TEXT]", "change the last message and have it answered"),
    ("stats", "", "show numbers: speed, memory, context"),
    ("tools", "[NAME on|off]", "list the tools, or switch one"),
    ("think", "[on|off|show|hide]", "think first or not; show it or not"),
    ("quit", "", "end the program"),
];

/// Reads a line. Two slashes begin a message that begins with one.
pub fn parse(line: &str) -> Result<Typed, String> {
    let line = line.trim();
    let Some(rest) = line.strip_prefix('/') else {
        return Ok(match line {
            "" => Typed::Empty,
            _ => Typed::Message(line.to_owned()),
        });
    };
    if rest.starts_with('/') {
        return Ok(Typed::Message(rest.to_owned()));
    }
    let (name, argument) = match rest.split_once(char::is_whitespace) {
        Some((name, argument)) => (name, Some(argument.trim()).filter(|text| !text.is_empty())),
        None => (rest, None),
    };
    let text = argument.map(str::to_owned);
    let command = match name {
        "help" | "?" => Command::Help,
        "new" => Command::New,
        "system" => {
            Command::System(text.map(|text| if text == "off" { String::new() } else { text }))
        }
        "model" => Command::Model(text),
        "save" => Command::Save(text),
        "load" => Command::Load(text),
        "sessions" => Command::Sessions,
        "retry" => Command::Retry,
        "edit" => Command::Edit(text),
        "stats" => Command::Stats,
        "tools" => Command::Tools(argument.map(switch).transpose()?),
        "think" => Command::Think(argument.map(think).transpose()?),
        "quit" | "exit" => Command::Quit,
        _ => return Err(unknown(name)),
    };
    let takes = COMMANDS.iter().find(|(known, ..)| *known == name).map(|(_, takes, _)| *takes);
    match (takes, argument) {
        (Some(""), Some(_)) => Err(format!("/{name} takes nothing after it")),
        _ => Ok(Typed::Command(command)),
    }
}

fn switch(argument: &str) -> Result<(String, bool), String> {
    match argument.split_once(char::is_whitespace).map(|(name, state)| (name, state.trim())) {
        Some((name, "on")) => Ok((name.to_owned(), true)),
        Some((name, "off")) => Ok((name.to_owned(), false)),
        _ => Err("/tools takes a tool's name and on or off, such as /tools shell on".to_owned()),
    }
}

fn think(argument: &str) -> Result<Think, String> {
    match argument {
        "on" => Ok(Think::On),
        "off" => Ok(Think::Off),
        "show" => Ok(Think::Show),
        "hide" => Ok(Think::Hide),
        _ => Err(format!("/think takes on, off, show or hide, not {argument}")),
    }
}

fn unknown(name: &str) -> String {
    let begins =
        |known: &str| !name.is_empty() && (known.starts_with(name) || name.starts_with(known));
    let near = COMMANDS.iter().find(|(known, ..)| begins(known) || distance(known, name) <= 2);
    let hint = match near {
        Some((known, ..)) => format!("did you mean /{known}?"),
        None => "/help lists them".to_owned(),
    };
    format!("there is no command /{name}; {hint} A message that begins with / is written with two")
}

/// Edits that make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(32).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
