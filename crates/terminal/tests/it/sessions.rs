//! Sessions: kept, resumed, cut off anywhere, damaged.

use std::fs;

use chat::Message;
use proptest::prelude::*;
use terminal::sessions::{Record, SessionError, SessionFile, Store, Talk, check_name};

use crate::support::TempDir;

/// A session with all kinds of records, and the talk that it tells.
fn example(store: &Store) -> (String, Talk) {
    let mut file = store.create().expect("a session can begin");
    let mut answer = Message::new("assistant", "");
    answer.content = serde_json::Value::Null;
    answer.other.insert("reasoning_content".into(), "hm \u{1b}[2J".into());
    answer.other.insert(
        "tool_calls".into(),
        serde_json::json!([{ "id": "call_1", "function": { "name": "f", "arguments": "{}" } }]),
    );
    let mut talk = Talk::default();
    for record in [
        Record::Model { name: "demo".into() },
        Record::System { text: Some("be brief".into()) },
        Record::Message { message: Message::user("first\nline \u{e9}") },
        Record::Message { message: Message::new("assistant", "wrong") },
        Record::Keep { messages: 1 },
        Record::Message { message: answer },
        Record::Message { message: Message::new("tool", "42") },
        Record::Name { name: "a talk".into() },
        Record::System { text: None },
    ] {
        file.append(&record).expect("it can be written");
        talk.apply(record).expect("it makes sense");
    }
    (file.id().to_owned(), talk)
}

#[test]
fn a_talk_comes_back_as_it_was() {
    let directory = TempDir::new();
    let store = Store::new(directory.path().join("sessions"));
    assert!(store.list(10).expect("no directory is no error").is_empty());
    let (id, talk) = example(&store);
    assert_eq!(talk.messages.len(), 3);
    for key in ["last", "1", "a talk", &id, &id[..9]] {
        let (file, resumed) = store.resume(key).expect(key);
        assert_eq!((file.id(), &resumed), (id.as_str(), &talk), "{key}");
        // It is open now, and nobody else may append.
        assert!(matches!(store.resume(key), Err(SessionError::InUse { .. })));
    }
    let listed = store.list(10).expect("they can be listed");
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].talk.as_ref().expect("it is sound").title(), Some("first\nline \u{e9}"));
    for key in ["2", "0", "missing", "../x", ""] {
        let result = store.resume(key);
        assert!(result.is_err() || key.is_empty(), "{key}");
    }
}

#[test]
fn a_kill_at_any_byte_loses_no_more_than_the_last_line() {
    let directory = TempDir::new();
    let store = Store::new(directory.path().to_owned());
    let (id, _) = example(&store);
    let path = directory.path().join(format!("{id}.jsonl"));
    let bytes = fs::read(&path).expect("it is there");
    let first = bytes.iter().position(|&byte| byte == b'\n').expect("there are lines") + 1;
    for cut in first..bytes.len() {
        fs::write(&path, &bytes[..cut]).expect("it can be cut");
        let whole = bytes[..cut].iter().filter(|&&byte| byte == b'\n').count() - 1;
        let (mut file, _) = SessionFile::resume(&path, &id).expect("what is whole is kept");
        file.append(&Record::Name { name: "on".into() }).expect("the talk goes on");
        drop(file);
        let text = fs::read_to_string(&path).expect("it is text");
        assert_eq!(text.lines().count(), whole + 2, "cut at {cut}");
        assert_eq!(SessionFile::read(&path).expect("it is sound").name.as_deref(), Some("on"));
    }
}

#[test]
fn damage_is_named_with_its_line() {
    let directory = TempDir::new();
    let path = directory.path().join("0.jsonl");
    let head = r#"{"type":"session","version":1,"id":"0","created":0}"#;
    for (text, line, words) in [
        ("", 1, "EOF"),
        ("not json\n", 1, "expected"),
        (r#"{"type":"name","name":"x"}"#, 1, "begin"),
        (r#"{"type":"session","version":2,"id":"0","created":0}"#, 1, "version 2"),
        (&format!("{head}\n{head}\n"), 2, "inside"),
        (&format!("{head}\n{{\"type\":\"keep\",\"messages\":1}}\n"), 2, "1 of 0"),
        (&format!("{head}\n\n{head}\n"), 2, "EOF"),
        (&format!("{head}\n{{\"type\":\"spell\\u001b[2J\"}}\n"), 2, "spell\u{241b}[2J"),
        (&format!("{head}\n{{\"type\":\"name\",\"name\":\"x\",\"y\":1}}\n"), 2, "y"),
        (
            &format!(
                "{head}\n{{\"type\":\"message\",\"message\":{{\"role\":\"root\",\"content\":\"\"}}}}\n"
            ),
            2,
            "root",
        ),
        (
            &format!(
                "{head}\n{{\"type\":\"message\",\"message\":{{\"role\":\"user\",\"content\":[1]}}}}\n"
            ),
            2,
            "content",
        ),
        (
            &format!("{head}\n{{\"type\":\"message\",\"message\":{}\n", "[".repeat(100_000)),
            2,
            "recursion",
        ),
    ] {
        fs::write(&path, format!("{text}\n")).expect("it can be written");
        match SessionFile::read(&path) {
            Err(SessionError::Malformed { line: found, reason, .. }) => {
                assert_eq!(found, line, "{text:.80}: {reason}");
                assert!(reason.contains(words), "{text:.80}: {reason}");
            }
            other => panic!("{text:.80}: {other:?}"),
        }
    }
}

#[test]
fn names_are_not_taken_for_something_else() {
    assert!(check_name("my talk \u{e9}").is_ok());
    for name in ["", "last", "12", "a/b", "..\\x", "a\u{1b}[2J", &"x".repeat(65)] {
        assert!(check_name(name).is_err(), "{name:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at: prop::sample::Index) {
        let directory = TempDir::new();
        let store = Store::new(directory.path().to_owned());
        let (id, _) = example(&store);
        let path = directory.path().join(format!("{id}.jsonl"));
        let mut whole = fs::read(&path).expect("it is there");
        let at = at.index(whole.len());
        let end = (at + bytes.len()).min(whole.len());
        whole.splice(at..end, bytes);
        fs::write(&path, whole).expect("it can be written");
        drop(SessionFile::resume(&path, &id));
        prop_assert_eq!(store.list(5).expect("a damaged session is listed").len(), 1);
    }
}
