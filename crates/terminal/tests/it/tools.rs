//! The shell: consent, bounds, and what the model is told.

use std::path::Path;
use std::time::{Duration, Instant};

use terminal::tools::{Consent, Limits, Ran, matches, run, shell_command};

const LIMITS: Limits = Limits { time: Duration::from_secs(20), output_bytes: 1000 };

fn sh(command: &str, limits: Limits) -> Ran {
    run(command, Path::new("/"), limits, &mut |_| {}, &mut || false)
        .expect("a shell can be started")
}

#[test]
fn a_star_stands_for_words_only() {
    for (pattern, command) in [
        ("ls *", "ls"),
        ("ls *", " ls -l /tmp "),
        ("git * --stat", "git log -3 --stat"),
        ("echo 'a; b' > x", "echo 'a; b' > x"),
        ("*", "make"),
        ("cat *.rs | wc -l", "cat a.rs | wc -l"),
    ] {
        assert!(matches(pattern, command), "{pattern} matches {command}");
    }
    for (pattern, command) in [
        ("ls *", "lsof"),
        ("ls *", "ls; rm -r ."),
        ("ls *", "ls && rm x"),
        ("ls *", "ls | sh"),
        ("ls *", "ls > /etc/passwd"),
        ("ls *", "ls $(rm x)"),
        ("ls *", "ls `rm x`"),
        ("ls *", "ls\nrm x"),
        ("ls *", "ls\rrm x"),
        ("ls *", "ls \\\nx"),
        ("ls *", "ls &"),
        ("ls * x", "ls ; x"),
        ("*", "a; b"),
        ("*", ""),
        ("ls", "ls -l"),
        ("", "ls"),
        ("git log *", "git logs"),
    ] {
        assert!(!matches(pattern, command), "{pattern} does not match {command:?}");
    }
    let mut consent = Consent::default();
    assert!(!consent.covers("ls"));
    consent.add("ls *");
    assert!(consent.covers("ls -a") && !consent.covers("rm -a"));
}

#[test]
fn both_outputs_come_in_order_and_failures_are_told() {
    let ran = sh("echo one; echo two >&2; echo three; exit 3", LIMITS);
    assert_eq!(ran.output, "one\ntwo\nthree\n");
    assert_eq!(ran.for_model(), "one\ntwo\nthree\n[exit status 3]");
    assert_eq!(sh("true", LIMITS).for_model(), "[no output]");
    assert_eq!(sh("pwd; cat", LIMITS).for_model(), "/\n", "it has no input, and its directory");
}

#[test]
fn long_output_keeps_both_ends() {
    let ran = sh("seq 1 100000", Limits { output_bytes: 40, ..LIMITS });
    assert!(ran.output.starts_with("1\n2\n3\n") && ran.output.ends_with("99999\n100000\n"));
    assert!(ran.output.contains("bytes left out") && ran.output.len() < 80, "{}", ran.output);
}

#[test]
fn time_runs_out_for_all_that_a_command_started() {
    let begin = Instant::now();
    let limits = Limits { time: Duration::from_millis(300), ..LIMITS };
    let ran = sh("sleep 600 & echo $!; sleep 600", limits);
    assert_gone(ran.output.trim());
    assert!(ran.trouble.expect("it was stopped").contains("0.3 seconds"));
    assert!(begin.elapsed() < Duration::from_secs(300), "nobody waited for the sleepers");
}

#[test]
fn what_a_command_left_in_the_background_ends_with_it() {
    let ran = sh("sleep 600 >/dev/null 2>&1 & echo $!", LIMITS);
    assert_eq!(ran.trouble, None);
    assert_gone(ran.output.trim());
}

/// A process that was killed may remain for a moment, or as a zombie that nobody waits for.
fn assert_gone(id: &str) {
    assert!(id.parse::<u32>().is_ok(), "{id:?} is a process");
    let lives = format!("kill -0 {id} && case $(ps -o stat= -p {id}) in Z*) exit 1 ;; esac");
    let begin = Instant::now();
    while sh(&lives, LIMITS).trouble.is_none() {
        assert!(begin.elapsed() < Duration::from_secs(60), "process {id} lives on");
    }
}

#[test]
fn the_user_stops_a_command() {
    let mut shown = Vec::new();
    let stop = std::cell::Cell::new(false);
    let mut show = |piece: &[u8]| {
        shown.extend_from_slice(piece);
        stop.set(true);
    };
    let ran = run("echo x; sleep 600", Path::new("/"), LIMITS, &mut show, &mut || stop.get());
    let ran = ran.expect("a shell can be started");
    assert_eq!(ran.for_model(), "x\n[stopped by the user]");
    assert_eq!(shown, b"x\n");
}

#[test]
fn calls_without_a_command_are_refused() {
    assert_eq!(shell_command(r#"{"command":"ls"}"#).as_deref(), Ok("ls"));
    for arguments in
        ["", "[]", "{}", r#"{"command":3}"#, r#"{"command":" "}"#, r#"{"command":"a\u0000b"}"#]
    {
        assert!(shell_command(arguments).is_err(), "{arguments}");
    }
}
