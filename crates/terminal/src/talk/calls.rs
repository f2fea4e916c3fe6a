//! Calls of tools: what is offered, what the user consents to, what comes back.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use chat::ToolCall;
use serde_json::Value;

use crate::config::Config;
use crate::input::Input;
use crate::interrupt::Interrupt;
use crate::screen::Screen;
use crate::talk::directory_of;
use crate::text::{Colour, Line, Style, clean, one_line, wrap_hard};
use crate::tools::{
    Consent, Limits, McpServer, McpTool, SHELL, matches, run, shell_command, shell_definition,
    shortened,
};

/// Lines of a command's output that are shown.
const SHOWN_LINES: usize = 40;

/// The tools that the model may call.
pub struct Toolbox {
    shell: bool,
    consent: Consent,
    limits: Limits,
    directory: PathBuf,
    /// Servers with whether their tools are offered.
    servers: Vec<(McpServer, bool)>,
}

/// What came of a call.
pub struct Called {
    /// What the model is told.
    pub text: String,
    /// Whether the user wants no more of this.
    pub stopped: bool,
}

impl Called {
    fn told(text: impl Into<String>) -> Self {
        Self { text: text.into(), stopped: false }
    }
}

/// What the user says about running something.
enum Answer {
    Yes,
    No,
    Stop,
}

impl Toolbox {
    /// The tools of a configuration.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let tools = &config.tools;
        let limits = Limits {
            time: Duration::from_secs(tools.timeout_seconds),
            output_bytes: tools.output_bytes,
        };
        let servers = config.mcp.iter().map(|(name, server)| McpServer::start(name, server));
        let servers = servers.map(|server| server.map(|server| (server, true)));
        Ok(Self {
            servers: servers.collect::<anyhow::Result<_>>()?,
            shell: tools.shell,
            consent: Consent::new(tools.yes.clone()),
            limits,
            directory: directory_of(config)?,
        })
    }

    /// What the model is offered.
    pub fn definitions(&self) -> Vec<Value> {
        let offered = self.servers.iter().filter(|(_, on)| *on);
        let served = offered.flat_map(|(server, _)| server.tools());
        let shell = self.shell.then(shell_definition);
        shell.into_iter().chain(served.map(|tool| tool.definition.clone())).collect()
    }

    /// Every tool with whether it is offered, in lines.
    pub fn lines(&self) -> Vec<String> {
        let state = if self.shell { "on" } else { "off" };
        let mut lines = vec![format!(
            "{SHELL}: {state}; runs commands in {} for at most {} s, and asks before each",
            one_line(&self.directory.display().to_string()),
            self.limits.time.as_secs(),
        )];
        for (server, on) in &self.servers {
            let names: Vec<&str> = server.tools().iter().map(|tool| tool.name.as_str()).collect();
            let state = if *on { "on" } else { "off" };
            lines.push(format!("{}: {state}; {}", one_line(server.name()), names.join(", ")));
        }
        for pattern in self.consent.patterns() {
            lines.push(format!("  without asking: {}", one_line(pattern)));
        }
        lines
    }

    /// Switches a tool; tells whether there is such a tool.
    pub fn switch(&mut self, name: &str, on: bool) -> bool {
        if name == SHELL {
            self.shell = on;
            return true;
        }
        let server = self.servers.iter_mut().find(|(server, _)| server.name() == name);
        server.map(|(_, state)| *state = on).is_some()
    }

    /// Makes a call, if the user lets it.
    pub fn call(
        &mut self,
        call: &ToolCall,
        screen: &mut Screen,
        input: &mut Input,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Called> {
        if call.name == SHELL && self.shell {
            return match shell_command(&call.arguments) {
                Ok(command) => self.run(&command, screen, input, interrupt),
                Err(reason) => {
                    screen.warn(&format!("[the call of the shell is unsound: {reason}]"))?;
                    Ok(Called::told(format!("This call is not sound: {reason}.")))
                }
            };
        }
        let tool = self.servers.iter().enumerate().filter(|(_, (_, on))| *on).find_map(
            |(at, (server, _))| {
                server
                    .tools()
                    .iter()
                    .find(|tool| tool.name == call.name)
                    .map(|tool| (at, tool.clone()))
            },
        );
        if let Some((at, tool)) = tool {
            return self.ask_server(at, &tool, &call.arguments, screen, input, interrupt);
        }
        screen
            .warn(&format!("[the model called {}, which is not offered]", one_line(&call.name)))?;
        Ok(Called::told(format!("There is no tool named {}.", call.name)))
    }

    fn run(
        &mut self,
        command: &str,
        screen: &mut Screen,
        input: &mut Input,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Called> {
        announce(screen, "$ ", command)?;
        if let Some(refused) = self.consent(command, screen, input)? {
            return Ok(refused);
        }
        let busy = interrupt.busy(input.is_person());
        let mut output = Shown::default();
        let mut trouble: Option<io::Error> = None;
        let mut stopped = false;
        let ran = run(
            command,
            &self.directory,
            self.limits,
            &mut |piece| {
                if let Err(error) = output.add(piece, screen) {
                    trouble.get_or_insert(error);
                }
            },
            &mut || {
                stopped |= interrupt.take();
                stopped
            },
        );
        drop(busy);
        if let Some(error) = trouble {
            return Err(error.into());
        }
        output.finish(screen)?;
        let ran = match ran {
            Ok(ran) => ran,
            Err(error) => {
                screen.warn(&format!("[the shell cannot be started: {error}]"))?;
                return Ok(Called::told(format!("The shell could not be started: {error}.")));
            }
        };
        if let Some(ending) = &ran.trouble {
            screen.aside(&format!("[{ending}]"))?;
        }
        Ok(Called { text: ran.for_model(), stopped })
    }

    /// Has a server do what the model calls for.
    fn ask_server(
        &mut self,
        at: usize,
        tool: &McpTool,
        arguments: &str,
        screen: &mut Screen,
        input: &mut Input,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Called> {
        announce(screen, "> ", &format!("{} {arguments}", tool.name))?;
        if let Some(refused) = self.consent(&tool.name, screen, input)? {
            return Ok(refused);
        }
        let busy = interrupt.busy(input.is_person());
        let mut stopped = false;
        let mut stop = || {
            stopped |= interrupt.take();
            stopped
        };
        let (server, _) = &mut self.servers[at];
        let result = server.call(tool, arguments, self.limits.time, &mut stop);
        drop(busy);
        let text = match result {
            Ok(text) => shortened(&text, self.limits.output_bytes),
            Err(error) => {
                shortened(&format!("The call failed: {error:#}"), self.limits.output_bytes)
            }
        };
        let mut output = Shown::default();
        output.add(text.as_bytes(), screen)?;
        output.finish(screen)?;
        Ok(Called { text, stopped })
    }

    /// Asks for consent where there is none yet; gives what is told to the model if it is refused.
    fn consent(
        &mut self,
        what: &str,
        screen: &mut Screen,
        input: &mut Input,
    ) -> anyhow::Result<Option<Called>> {
        if self.consent.covers(what) {
            return Ok(None);
        }
        if !input.is_person() {
            screen.warn(&format!(
                "[not run: nobody can be asked, and no --yes pattern allows it: {}]",
                one_line(what)
            ))?;
            return Ok(Some(Called::told("This was not run: the user has not allowed it.")));
        }
        let stopped = match self.ask(what, screen, input)? {
            Answer::Yes => return Ok(None),
            Answer::No => false,
            Answer::Stop => true,
        };
        Ok(Some(Called { text: "The user did not allow this.".to_owned(), stopped }))
    }

    fn ask(
        &mut self,
        command: &str,
        screen: &mut Screen,
        input: &mut Input,
    ) -> anyhow::Result<Answer> {
        loop {
            let Some(answer) = input.ask("run it? yes, no, always [y/n/a] ", "")? else {
                return Ok(Answer::Stop);
            };
            match answer.trim().to_ascii_lowercase().as_str() {
                "y" | "yes" => return Ok(Answer::Yes),
                "n" | "no" => return Ok(Answer::No),
                "a" | "always" if command.chars().any(|c| c.is_control() && c != '\n') => {
                    screen.warn("that has control characters, and is asked for every time")?;
                }
                "a" | "always" => {
                    let pattern = input.ask("always (* stands for words): ", command.trim())?;
                    let Some(pattern) = pattern else { continue };
                    if !matches(&pattern, command) {
                        screen
                            .warn("that does not match this command, so it would not allow it")?;
                        continue;
                    }
                    self.consent.add(&pattern);
                    return Ok(Answer::Yes);
                }
                _ => screen.aside(
                    "y runs it once, n does not, a runs it and what is like it from now on",
                )?,
            }
        }
    }
}

/// Shows what the model wants to be done.
fn announce(screen: &mut Screen, mark: &str, what: &str) -> io::Result<()> {
    let style = Style { bold: true, ..Style::colour(Colour::Yellow) };
    let lines = wrap_hard(&clean(what), style, screen.width().saturating_sub(2));
    let before =
        |(index, line): (usize, Line)| line.after(if index == 0 { mark } else { "  " }, style);
    screen.update(&lines.into_iter().enumerate().map(before).collect::<Vec<_>>(), &[])
}

/// The output of a command on the screen.
#[derive(Default)]
struct Shown {
    rest: Vec<u8>,
    lines: usize,
}

impl Shown {
    fn add(&mut self, piece: &[u8], screen: &mut Screen) -> io::Result<()> {
        self.rest.extend_from_slice(piece);
        while let Some(at) = self.rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=at).collect();
            self.line(&line[..at], screen)?;
        }
        // A line without an end is not gathered for ever.
        if self.rest.len() > 1 << 16 {
            let line = std::mem::take(&mut self.rest);
            self.line(&line, screen)?;
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8], screen: &mut Screen) -> io::Result<()> {
        self.lines += 1;
        if self.lines > SHOWN_LINES {
            return Ok(());
        }
        let text = String::from_utf8_lossy(line);
        let mut lines = wrap_hard(&clean(&text), Style::DIM, screen.width().saturating_sub(2));
        lines.truncate(4);
        screen.update(
            &lines.into_iter().map(|line| line.after("  ", Style::DIM)).collect::<Vec<_>>(),
            &[],
        )
    }

    fn finish(mut self, screen: &mut Screen) -> anyhow::Result<()> {
        if !self.rest.is_empty() {
            let line = std::mem::take(&mut self.rest);
            self.line(&line, screen)?;
        }
        let more = self.lines.saturating_sub(SHOWN_LINES);
        if more > 0 {
            screen.aside(&format!("  ... {more} lines more")).context("showing output")?;
        }
        Ok(())
    }
}
