//! What routers saw and said, and what they would have said layers earlier: for analysis.
//!
//! A pass that nobody asks for a log computes nothing of this. A log takes, for each row and layer,
//! the hidden width and one row of logits a stride and one more: whoever asks empties it between passes
//! of few rows.

use compute::Backend;

use crate::decoder::{Ffn, Layer};

/// The log of a workspace's passes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouterLog {
    /// How many layers ahead each layer's router is tried; at least 1.
    pub strides: usize,
    /// Of each pass each layer with routed experts, in order.
    pub layers: Vec<RoutedLayer>,
    /// Predictions for layers that are not computed yet, by stride from the nearest.
    ahead: Vec<Vec<Vec<f32>>>,
}

/// One layer of one pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoutedLayer {
    /// The layer.
    pub layer: usize,
    /// The residual stream before the layer's mixer, (rows, hidden).
    pub input: Vec<f32>,
    /// The router's logits, (rows, n_experts).
    pub logits: Vec<f32>,
    /// What the same router says of the residual stream before this layer's mixer (stride 1), before
    /// the mixer of the layer before (stride 2), and so on, (rows, n_experts) each; fewer in the first
    /// layers.
    pub predicted: Vec<Vec<f32>>,
}

impl RouterLog {
    /// An empty log.
    pub fn new(strides: usize) -> Self {
        Self { strides: strides.max(1), ..Self::default() }
    }

    /// Before the mixer of layer `index`: keeps `x`, the residual stream, and what the routers of this
    /// layer and the next ones say of it. `normed` and `logits` are overwritten.
    pub(crate) fn before_mixer<B: Backend>(
        &mut self,
        backend: &mut B,
        layers: &[Layer<B::Matrix, B::Vector>],
        index: usize,
        eps: f32,
        x: &B::Buffer,
        [normed, logits]: [&mut B::Buffer; 2],
    ) {
        // The first of a pass forgets what a pass that failed has left.
        if index == 0 {
            self.ahead.clear();
        }
        self.ahead.resize(layers.len(), Vec::new());
        for stride in 1..=self.strides {
            let target = index + stride - 1;
            if let Some(Layer { ffn_norm, ffn: Ffn::Moe(block), .. }) = layers.get(target) {
                backend.rms_norm(x, ffn_norm, eps, normed);
                block.router_logits(backend, normed, logits);
                let mut values = Vec::new();
                backend.download(logits, &mut values);
                // Farther strides came in earlier layers: the nearest is put in front.
                self.ahead[target].insert(0, values);
            }
        }
        if let Ffn::Moe(_) = &layers[index].ffn {
            let mut input = Vec::new();
            backend.download(x, &mut input);
            let predicted = std::mem::take(&mut self.ahead[index]);
            self.layers.push(RoutedLayer { layer: index, input, logits: Vec::new(), predicted });
        }
    }

    /// After the router of the layer that was begun last.
    pub(crate) fn routed<B: Backend>(&mut self, backend: &mut B, logits: &B::Buffer) {
        if let Some(layer) = self.layers.last_mut() {
            backend.download(logits, &mut layer.logits);
        }
    }
}
