//! What activations of eight bits and a cache of 16-bit floats cost, on the demo model's held-out text.

use engine::EngineOptions;
use eval::{Results, Summary, Unit, record_reference, score_document};

use crate::resuming::facts;
use crate::{demo, documents, scratch};

/// Documents that are compared.
const DOCUMENTS: usize = 40;

#[test]
fn eight_bit_activations_cost_little() {
    let mut precise = demo(EngineOptions { precise: true, ..EngineOptions::default() });
    let mut fast = demo(EngineOptions::default());
    let documents = documents(&fast, "tale", DOCUMENTS);
    let path = scratch("precision.reference");
    let reference = record_reference(&mut precise, &documents, &path, "demo", 512, |_| {});
    let mut reference = reference.expect("it runs");
    let mut units = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        let rows = reference.rows(index).expect("they are there");
        let unit = score_document(&mut fast, document, Some(&rows)).expect("it runs");
        units.push(Unit::Document(unit));
    }
    std::fs::remove_file(path).expect("it is there");
    let summary = Summary::of(&Results::new(facts(), units));
    let texts = summary.all_texts().expect("there are texts");
    let compared = texts.compared.as_ref().expect("it was compared");
    println!("{texts:#?}");
    let (kl, agree) = (compared.divergence.value, compared.same_best.value);
    let change = compared.perplexity_ratio.value - 1.0;
    assert!(kl > 0.0 && kl < 2e-3, "the divergence is {kl}");
    assert!(change.abs() < 0.002, "perplexity changed by {change}");
    assert!(agree > 0.98, "{agree} of the best tokens are the same");
}
