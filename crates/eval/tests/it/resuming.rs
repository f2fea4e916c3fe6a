//! Runs that were interrupted and go on, and files that are not what they should be.

use std::fs;

use engine::EngineOptions;
use eval::{
    Case, Document, Error, Facts, Progress, Reference, Results, Row, Unit, record_reference,
    score_document,
};
use serde_json::json;

use crate::{demo, documents, held_out, scratch};

/// Facts that say nothing.
pub fn facts() -> Facts {
    serde_json::from_value(json!({
        "date": "", "program": "", "model": "", "device": "", "lossy": null, "expert_bytes": 0,
        "expert_slot_bytes": 0, "trunk_bytes_per_token": 0, "reference": null,
        "reference_top": null, "texts": [], "window": 0, "text_fingerprint": "", "requests": [],
        "request_fingerprint": "", "thinking": null,
    }))
    .expect("all fields are there")
}

#[test]
fn a_run_goes_on_where_it_was_interrupted() {
    let mut engine = demo(EngineOptions::default());
    let documents = documents(&engine, "skill", 4);
    let path = scratch("progress");
    let run = json!({ "model": "demo" });
    let mut progress = Progress::open(&path, &run).expect("it can be made");
    let mut score = |document: &Document, progress: &mut Progress| {
        let unit = score_document(&mut engine, document, None).expect("it runs");
        progress.push(&Unit::Document(unit)).expect("it can be written");
    };
    documents.iter().for_each(|document| score(document, &mut progress));
    let whole = progress.units().to_vec();
    drop(progress);

    // Killed while it wrote its third unit.
    let text = fs::read_to_string(&path).expect("it is there");
    let third = text.match_indices('\n').nth(2).expect("five lines").0;
    // It was in the midst of a character.
    let torn = [&text.as_bytes()[..third + 40], &[0xe2, 0x82]].concat();
    fs::write(&path, torn).expect("it can be written");
    let mut progress = Progress::open(&path, &run).expect("it goes on");
    assert_eq!(progress.units(), &whole[..2]);
    documents[2..].iter().for_each(|document| score(document, &mut progress));
    let without_time = |units: &[Unit]| -> Vec<Unit> {
        let mut units = units.to_vec();
        for unit in &mut units {
            if let Unit::Document(unit) = unit {
                (unit.cost.seconds, unit.cost.read_bytes) = (0.0, 0);
            }
        }
        units
    };
    assert_eq!(without_time(progress.units()), without_time(&whole));
    drop(progress);
    assert_eq!(fs::read_to_string(&path).expect("it is there").lines().count(), 5);

    let Err(error) = Progress::open(&path, &json!({ "model": "other" })) else {
        panic!("another run's progress is not taken");
    };
    assert!(error.to_string().contains("another run"), "{error}");
    let units =
        Progress::open(&path, &run).expect("it is whole").finish().expect("it can be removed");
    assert_eq!(units.len(), 4);
    assert!(!path.exists());
}

#[test]
fn a_reference_goes_on_and_is_refused_for_other_texts() {
    let mut engine = demo(EngineOptions::default());
    let documents = documents(&engine, "skill", 3);
    let path = scratch("reference");
    let mut record = |top: usize| {
        record_reference(&mut engine, &documents, &path, "demo", top, |_| {}).map(drop)
    };
    record(8).expect("it runs");
    let whole = fs::read(&path).expect("it is there");
    fs::write(&path, &whole[..whole.len() - 100]).expect("it can be written");
    let vocab_size = 8192;
    let open = |documents: &[Document]| Reference::open(&path, documents, vocab_size);
    let refused = |error: Option<Error>, words: &str| {
        let text = error.expect("it is refused").to_string();
        assert!(text.contains(words), "{text}");
    };
    refused(open(&documents).err(), "is not whole");
    record(8).expect("it goes on");
    assert_eq!(fs::read(&path).expect("it is there"), whole, "the same bytes come");
    refused(record(9).err(), "another reference run");
    refused(open(&documents[..2]).err(), "other texts");
    refused(Reference::open(&path, &documents, 100).err(), "another vocabulary");

    let mut reference = open(&documents).expect("it is whole");
    let rows: Vec<Row> = reference.rows(1).expect("they are there");
    assert_eq!(rows.len(), documents[1].n_counted());
    for row in &rows {
        let sum: f64 = row.log_probabilities.iter().map(|&log| f64::from(log).exp()).sum();
        assert!((sum + f64::from(row.rest).exp() - 1.0).abs() < 1e-5, "{row:?}");
        assert!(row.log_probabilities.is_sorted_by(|a, b| a >= b), "{row:?}");
    }
    // A power cut may leave zeros where rows were.
    let mut zeroed = whole.clone();
    let place = zeroed.len() - (8 + 8 * 8);
    zeroed[place..].fill(0);
    fs::write(&path, zeroed).expect("it can be written");
    refused(open(&documents).expect("its size is right").rows(2).err(), "damaged");
    // The last token of the last row is one that does not exist.
    let mut damaged = whole.clone();
    let place = damaged.len() - 4 * 8 - 4;
    damaged[place..place + 4].fill(0xff);
    fs::write(&path, damaged).expect("it can be written");
    refused(open(&documents).expect("its size is right").rows(2).err(), "damaged");
    fs::write(&path, b"FMEVREF1\xff\xff\xff\xff").expect("it can be written");
    refused(open(&documents).err(), "no reference run");
    fs::remove_file(path).expect("it is there");
}

#[test]
fn files_that_cannot_be_used_say_where_they_are_wrong() {
    let engine = demo(EngineOptions::default());
    let tokenizer = engine.tokenizer().expect("it has one");
    let path = scratch("texts.jsonl");
    let texts = |text: &str| {
        let path = path.with_extension("jsonl");
        fs::write(&path, text).expect("it can be written");
        let read = eval::read_texts(&path, tokenizer, 16);
        fs::remove_file(&path).expect("it is there");
        read
    };
    let error = |text: &str| texts(text).expect_err("it is wrong").to_string();
    assert!(error("{\"text\": \"One day\"}\n{\"text\": 1}\n").contains("line 2"));
    assert!(error("{\"segments\": [], \"text\": \"a\"}\n").contains("either"));
    assert!(error("\n").contains("no text"));
    let long = format!("{{\"text\": \"{}\", \"source\": \"long\"}}", "One day. ".repeat(20));
    let documents = texts(&long).expect("it is right");
    assert!(documents.len() > 1, "it is cut into windows");
    for document in &documents {
        assert!(document.tokens.len() <= 16 && document.source == "long");
        assert_eq!(document.n_counted(), document.tokens.len() - 1, "nothing predicts the first");
    }

    let error = Case::read_all(&held_out("tale.jsonl")).expect_err("these are no requests");
    assert!(error.to_string().contains("line 1"), "{error}");
    let path = scratch("results.json");
    Results::new(facts(), Vec::new()).write(&path).expect("it can be written");
    assert_eq!(Results::read(&path).expect("it is sound").facts, facts());
    fs::write(&path, "{\"schema\": \"flash-moe-eval/9\"}").expect("it can be written");
    let error = Results::read(&path).expect_err("it is of another time");
    assert!(error.to_string().contains("flash-moe-eval/9"), "{error}");
    fs::remove_file(path).expect("it is there");
}
