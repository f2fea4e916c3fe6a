//! The log of routers: what it holds, and that a pass is the same with it.

use engine::{EngineOptions, RoutedLayer};

use crate::{demo, streaming, tokens};

const TEXT: &str = "Once upon a time, there was a little girl who had a red ball. She lost it.";

#[test]
fn routers_are_logged_as_they_chose_and_as_they_would_have_chosen_earlier() {
    let mut engine = demo(EngineOptions { ..streaming() });
    let ids = tokens(&engine, TEXT);
    let n_experts = engine.config().moe.n_experts;
    let hidden = engine.config().hidden_size;
    let mut run = |strides: Option<usize>| -> (Vec<f32>, Vec<RoutedLayer>, Vec<Vec<u32>>) {
        engine.record_routers(strides);
        engine.record_routing(true);
        let mut session = engine.session().expect("a session");
        let mut logits = Vec::new();
        let visit = |_: usize, row: &[f32]| logits.extend_from_slice(row);
        engine.evaluate(&mut session, &ids, |_| true, visit).expect("it goes well");
        let chosen = engine.take_routing().into_iter().map(|routing| routing.experts).collect();
        (logits, engine.take_routers(), chosen)
    };
    let (plain, none, _) = run(None);
    let (logged, layers, chosen) = run(Some(3));
    assert!(none.is_empty() && plain == logged, "a pass gives the same bytes with the log");
    assert_eq!(layers.len(), chosen.len());

    let mut errors = [0.0_f64; 3];
    for (index, (layer, chosen)) in layers.iter().zip(&chosen).enumerate() {
        assert_eq!((layer.layer, layer.input.len()), (index, ids.len() * hidden));
        assert_eq!(layer.predicted.len(), (index + 1).min(3), "strides of layer {index}");
        let top_k = chosen.len() / ids.len();
        for (row, chosen) in layer.logits.chunks_exact(n_experts).zip(chosen.chunks_exact(top_k)) {
            let mut order: Vec<u32> = (0..n_experts as u32).collect();
            order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
            assert_eq!(&order[..top_k], chosen, "layer {index}");
        }
        if layer.predicted.len() == 3 {
            for (error, predicted) in errors.iter_mut().zip(&layer.predicted) {
                let pairs = predicted.iter().zip(&layer.logits);
                *error += pairs.map(|(a, b)| f64::from((a - b).powi(2))).sum::<f64>();
            }
        }
    }
    assert!(errors[0] < errors[1] && errors[1] < errors[2], "nearer is better: {errors:?}");
}
