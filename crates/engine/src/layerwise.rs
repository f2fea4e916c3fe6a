//! A model walked through layer by layer by a caller who computes what routed experts add.

use model::LayerPass;

use crate::engine::Engine;
use crate::error::Error;

impl Engine {
    /// The residual stream before the first layer, (tokens, hidden), of at most [`Engine::prompt_chunk`]
    /// tokens at a time.
    pub fn embedded(&mut self, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        self.check_tokens(tokens)?;
        let chunk = self.prompt_chunk();
        let rows = tokens.chunks(chunk).map(|tokens| self.runner.embedded(tokens));
        Ok(rows.collect::<Vec<_>>().concat())
    }

    /// A layer of a sequence from its beginning, given the residual stream before it, (rows, hidden),
    /// without its routed experts: no expert is read, and what they add is the caller's to compute.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn layer_pass(&mut self, layer: usize, residual: &[f32]) -> Result<LayerPass, Error> {
        let chunk = self.prompt_chunk();
        let pass = self.runner.layer_pass(layer, residual, chunk);
        pass.map_err(|source| Error::Forward { position: 0, source })
    }
}
