//! Commands: what is understood, and what is explained.

use terminal::command::{COMMANDS, Command, Think, Typed, parse};

#[test]
fn lines_are_messages_or_commands() {
    let command = |line: &str| match parse(line).expect(line) {
        Typed::Command(command) => command,
        other => panic!("{line} is {other:?}"),
    };
    assert_eq!(parse("  hello / there "), Ok(Typed::Message("hello / there".into())));
    assert_eq!(parse("//etc is a directory"), Ok(Typed::Message("/etc is a directory".into())));
    assert_eq!(parse(" \n"), Ok(Typed::Empty));
    assert_eq!(command("/quit"), Command::Quit);
    assert_eq!(command("/system You are\na poet"), Command::System(Some("You are\na poet".into())));
    assert_eq!(command("/system off"), Command::System(Some(String::new())));
    assert_eq!(command("/load last"), Command::Load(Some("last".into())));
    assert_eq!(command("/think hide"), Command::Think(Some(Think::Hide)));
    assert_eq!(command("/tools shell on"), Command::Tools(Some(("shell".into(), true))));
    for (name, ..) in COMMANDS {
        assert!(parse(&format!("/{name}")).is_ok(), "{name} is understood alone");
    }
}

#[test]
fn what_is_not_known_is_explained() {
    for (line, words) in [
        ("/hepl", "/help"),
        ("/sesions", "/sessions"),
        ("/m", "/model"),
        ("/frobnicate", "/help"),
        ("/", "/help"),
        ("/think loudly", "loudly"),
        ("/tools shell maybe", "/tools shell on"),
        ("/new talk", "/new takes nothing"),
    ] {
        let error = parse(line).expect_err(line);
        assert!(error.contains(words), "{line}: {error}");
    }
}
