//! `chat` through pipes: talks, commands, sessions, configuration.

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use crate::support::{TempDir, flash_moe, text};

/// The program with a place of its own for sessions.
pub fn chat(data: &TempDir, args: &[&str]) -> Command {
    let mut command = flash_moe();
    command.arg("chat").args(args).env("FLASH_MOE_DATA", data.path());
    command.env("XDG_CONFIG_HOME", data.path()).env("HOME", data.path());
    command.env_remove("FLASH_MOE_API_KEY").env_remove("COLUMNS");
    command
}

/// What comes of lines that are piped in.
pub fn piped(mut command: Command, lines: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("standard input is a pipe");
    // A program that refuses its options does not read.
    drop(stdin.write_all(lines.as_bytes()));
    drop(stdin);
    child.wait_with_output().expect("the program ends")
}

#[track_caller]
fn said(command: Command, lines: &str) -> String {
    let output = piped(command, lines);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{lines:?} failed:\n{stderr}");
    String::from_utf8(output.stdout).expect("the output is UTF-8")
}

#[track_caller]
fn refused(command: Command, lines: &str) -> String {
    let output = piped(command, lines);
    assert_eq!(output.status.code(), Some(1), "{lines:?} must fail");
    String::from_utf8(output.stderr).expect("messages are UTF-8")
}

const PLAIN: [&str; 3] = ["--think", "off", "--greedy"];

#[test]
fn a_pipe_is_a_talk_with_a_message_a_line() {
    let data = TempDir::new();
    let out = said(chat(&data, &PLAIN), "What is 34 plus 58?\n\nWhat is 2 plus 2?\n/stats\n");
    let (first, rest) = out.split_once('\n').expect("there are lines");
    assert!(first.contains("92"), "{out}");
    assert!(rest.lines().next().is_some_and(|line| line.contains('4')), "{out}");
    for words in
        ["talk: 4 messages", "replies: 2", "model: demo", "known before", "of 4,096 tokens"]
    {
        assert!(out.contains(words), "{words} is in:\n{out}");
    }
    assert!(!out.contains('\u{1b}'), "no pipe gets escape sequences:\n{out:?}");
}

#[test]
fn a_backslash_joins_lines_and_two_slashes_begin_a_message() {
    let data = TempDir::new();
    said(chat(&data, &[&PLAIN[..], &["-n", "1"]].concat()), "one\\\ntwo\n//three\n");
    let session = only_session(&data);
    assert!(session.contains(r#""content":"one\ntwo""#), "{session}");
    assert!(session.contains(r#""content":"/three""#), "{session}");
}

fn only_session(data: &TempDir) -> String {
    let sessions = fs::read_dir(data.path().join("sessions")).expect("sessions are kept");
    let paths: Vec<_> = sessions.map(|entry| entry.expect("it can be listed").path()).collect();
    assert_eq!(paths.len(), 1, "{paths:?}");
    fs::read_to_string(&paths[0]).expect("it is text")
}

#[test]
fn a_resumed_talk_goes_on_as_if_it_had_not_ended() {
    let (apart, whole) = (TempDir::new(), TempDir::new());
    let first = "Tell me a story about a mouse.\n";
    let second = "Tell me more about that.\n";
    let one = said(chat(&apart, &PLAIN), first);
    let two = said(chat(&apart, &[&PLAIN[..], &["--resume"]].concat()), second);
    let both = said(chat(&whole, &PLAIN), &format!("{first}{second}"));
    assert_eq!(format!("{one}{two}"), both);
    let without = said(chat(&whole, &[&PLAIN[..], &["--no-save"]].concat()), second);
    assert_ne!(two, without, "what was said before matters");
    assert_eq!(only_session(&apart).lines().count(), only_session(&whole).lines().count());
    // Loading inside another talk is the same.
    let loaded = said(chat(&apart, &PLAIN), &format!("/load 1\n/edit {second}"));
    assert_eq!(loaded, two, "the changed message is the same, and so is its answer");
}

#[test]
fn tokens_that_are_known_are_not_read_again() {
    let data = TempDir::new();
    let long = "word ".repeat(200);
    let args = [&PLAIN[..], &["-n", "4"]].concat();
    let out = said(chat(&data, &args), &format!("{long}\nAnd now?\n/stats\n"));
    let known = |out: &str| -> usize {
        let line = out.lines().find(|line| line.starts_with("last prompt:")).expect("stats tell");
        let known = line.split(", ").find(|part| part.ends_with(" known")).expect("they tell it");
        known.trim_end_matches(" known").replace(',', "").parse().expect("it is a number")
    };
    assert!(known(&out) >= 192, "{out}");
    let off = said(
        chat(&data, &[&args[..], &["--prefix-cache", "off"]].concat()),
        &format!("{long}\nAnd now?\n/stats\n"),
    );
    assert_eq!(out.lines().nth(1), off.lines().nth(1), "the answer does not depend on it");
    // What a later run finds on the drive is known, too.
    let cache = TempDir::new();
    let args = [&args[..], &["--cache-dir", text(cache.path())]].concat();
    said(chat(&data, &args), &format!("{long}\n"));
    let out = said(chat(&data, &[&args[..], &["--resume"]].concat()), "And now?\n/stats\n");
    assert!(known(&out) >= 192, "{out}");
}

#[test]
fn retry_is_another_answer_and_edit_another_question() {
    let data = TempDir::new();
    let args = ["--think", "off", "--temperature", "1.5", "-n", "20"];
    let out = said(chat(&data, &args), "Tell me a story.\n/retry\n/edit Sing a song.\n/stats\n");
    assert!(out.contains("talk: 2 messages"), "{out}");
    let session = only_session(&data);
    assert!(session.contains("Sing a song.") && session.matches(r#""type":"keep""#).count() == 2);
    let answers: Vec<&str> =
        session.lines().filter(|line| line.contains("\"assistant\"")).collect();
    assert_eq!(answers.len(), 3);
    assert_ne!(answers[0], answers[1], "another answer of the same question");
}

#[test]
fn thinking_is_hidden_from_pipes_unless_asked_for() {
    let data = TempDir::new();
    let args = ["--think", "on", "--greedy", "-n", "200"];
    let hidden = said(chat(&data, &args), "What is 34 plus 58?\n");
    let shown = said(
        chat(&data, &[&args[..], &["--show-thinking", "on"]].concat()),
        "What is 34 plus 58?\n",
    );
    assert!(!hidden.contains('\u{250a}') && hidden.contains("92"), "{hidden}");
    let thought = shown.lines().take_while(|line| line.starts_with("\u{250a} ")).count();
    assert!(thought > 0 && shown.ends_with(&hidden), "{shown}");
    let out = said(chat(&data, &["-n", "1"]), "/think off\n/think show\n/think\n");
    assert_eq!(out.lines().last(), Some("thinking: off, shown"));
}

#[test]
fn markdown_is_rendered_when_asked_for() {
    let data = TempDir::new();
    let args = ["--think", "off", "--greedy", "--markdown", "always"];
    let mut command = chat(&data, &args);
    command.env("COLUMNS", "40");
    let out = said(command, "Tell me a story about a mouse and a castle.\n");
    assert!(out.lines().count() > 3 && out.lines().all(|line| line.chars().count() <= 40), "{out}");
    let mut command = chat(&data, &[&args[..], &["--color", "always"]].concat());
    command.env("COLUMNS", "40");
    let coloured = said(command, "Tell me a story about a mouse and a castle.\n");
    assert_eq!(
        coloured.replace("\u{1b}[0m", "").replace("\u{1b}[1m", "").replace("\u{1b}[3m", ""),
        out
    );
}

#[test]
fn the_configuration_gives_defaults() {
    let data = TempDir::new();
    let path = data.path().join("mine.toml");
    fs::write(&path, "system = \"You are a pirate.\"\nthink = false\n[sampling]\nmax_tokens = 2\ntemperature = 0\n")
        .expect("it can be written");
    let args = ["--config", text(&path)];
    let out = said(chat(&data, &args), "Hello!\n/system\n/stats\n/think\n");
    assert!(out.contains("You are a pirate.") && out.contains("2 tokens said"), "{out}");
    assert!(out.contains("thinking: off"), "{out}");
    let out = said(
        chat(&data, &[&args[..], &["--system", "Be brief.", "-n", "3"]].concat()),
        "Hello!\n/system\n/stats\n",
    );
    assert!(
        out.contains("Be brief.") && out.contains("3 tokens said"),
        "options come first: {out}"
    );
    // The usual place is looked at, too.
    fs::create_dir_all(data.path().join("flash-moe")).expect("it can be made");
    let usual = data.path().join("flash-moe/config.toml");
    if cfg!(target_os = "linux") {
        fs::write(&usual, "sistem = 'x'").expect("it can be written");
        let message = refused(chat(&data, &[]), "Hello!\n");
        assert!(message.contains("sistem") && message.contains("config.toml"), "{message}");
    }
}

#[test]
fn talks_are_listed_named_and_not_kept_when_not_wanted() {
    let data = TempDir::new();
    let args = [&PLAIN[..], &["-n", "1"]].concat();
    assert!(said(chat(&data, &args), "/sessions\n/save\n").contains("no earlier talks"));
    said(chat(&data, &[&args[..], &["--no-save"]].concat()), "Secret!\n");
    assert!(!data.path().join("sessions").exists());
    said(chat(&data, &args), "First \u{1b}[2J words\n/save a name\n");
    said(chat(&data, &args), "Second words\n/new\nThird words\n");
    let out = said(chat(&data, &args), "/sessions\n");
    assert_eq!(out.lines().count(), 3, "{out}");
    assert!(
        out.contains("a name: First \u{241b}[2J words") && out.contains("Third words"),
        "{out:?}"
    );
    let out = said(chat(&data, &args), "/load a name\n/stats\n");
    assert!(out.contains("talk: 2 messages"), "{out}");
}

#[test]
fn a_talk_that_cannot_be_kept_goes_on() {
    let data = TempDir::new();
    fs::write(data.path().join("sessions"), "a file").expect("it can be written");
    let output = piped(chat(&data, &PLAIN), "What is 34 plus 58?\n/stats\n");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && stderr.matches("not kept from here on").count() == 1,
        "{stderr}"
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("talk: 2 messages"));
}

#[test]
fn what_cannot_be_done_is_an_error_that_says_so() {
    let data = TempDir::new();
    for (args, lines, words) in [
        (&["models/missing"][..], "", &["models/missing"][..]),
        (&["--resume", "nothing"], "", &["nothing", "/sessions"]),
        (&["--resume"], "", &["last"]),
        (&["--config", "/missing.toml"], "", &["/missing.toml"]),
        (&["--url", "https://example.org"], "", &["http://"]),
        (&["--url", "http://127.0.0.1:9"], "", &["127.0.0.1:9", "flash-moe serve"]),
        (&["--prefix-cache", "1"], "", &["prefix"]),
        (&["--context", "64"], &"word ".repeat(100), &["context", "64"]),
        (&[], "/retry\n", &["no message"]),
        (&[], "/frob\n", &["/frob"]),
        (&[], "/load 7\n", &["7"]),
        (&[], "/save last\n", &["last"]),
        (&[], "/tools hammer on\n", &["hammer"]),
        (&[], "/model models/missing\n", &["models/missing"]),
    ] {
        let message = refused(chat(&data, args), lines);
        for word in words {
            assert!(message.contains(word), "{args:?} {lines:?} names {word}:\n{message}");
        }
        assert!(!message.contains("panicked"), "{message}");
    }
}
