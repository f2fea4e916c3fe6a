//! The tokenizer as grammars see it: a tree of the bytes of all tokens, and the canonical tokens of a text.

use std::sync::Arc;

use engine::Beside;
use llguidance::ParserFactory;
use llguidance::earley::SlicedBiasComputer;
use tokenizer::Tokenizer;
use toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};

/// What grammars take beside an engine: the tree of the vocabulary (85 MB for 248,000 tokens), and the
/// states of lexers and of the grammars that are kept.
pub const GRAMMAR_MEMORY: Beside = Beside { bytes: 16 << 20, bytes_per_token: 350 };

struct Vocabulary {
    tokenizer: Tokenizer,
    trie: TokTrie,
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        let whole = str::from_utf8(bytes).map_or_else(|error| error.valid_up_to(), str::len);
        let (text, rest) = bytes.split_at(whole);
        let text = String::from_utf8_lossy(text);
        let mut tokens = match self.tokenizer.encode(&text) {
            Ok(tokens) => tokens,
            Err(_) => self.trie.greedy_tokenize(text.as_bytes()),
        };
        if !rest.is_empty() {
            tokens.extend(self.trie.greedy_tokenize(rest));
        }
        tokens
    }
}

/// What compiles grammars for a tokenizer. Building it walks the whole vocabulary.
pub(crate) fn factory(tokenizer: &Tokenizer, stop_tokens: &[u32]) -> Result<ParserFactory, String> {
    let words: Vec<Vec<u8>> = (0..tokenizer.vocab_size() as u32)
        .map(|id| {
            let bytes = tokenizer.token_bytes(id);
            match tokenizer.is_special(id) {
                true => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
                false => bytes.to_vec(),
            }
        })
        .collect();
    let Some(&first) = stop_tokens.first() else {
        return Err("the chat template shows no token that ends a reply".to_owned());
    };
    let info = TokRxInfo::new(words.len() as u32, first);
    let trie = TokTrie::from(&info, &words).with_eos_tokens(stop_tokens);
    let env: TokEnv = Arc::new(Vocabulary { tokenizer: tokenizer.clone(), trie });
    let capabilities = InferenceCapabilities { ff_tokens: true, ..Default::default() };
    let slices = SlicedBiasComputer::general_slices();
    let mut factory =
        ParserFactory::new(&env, capabilities, &slices).map_err(|error| error.to_string())?;
    factory.quiet();
    let limits = factory.limits_mut();
    limits.initial_lexer_fuel = 1_000_000;
    // About 0.2 s at worst. A text that must be long needs most of it for its first mask: with a tenth of this
    // a call failed where `minLength` was 100.
    limits.step_lexer_fuel = 2_000_000;
    limits.step_max_items = 20_000;
    limits.max_items_in_row = 1_000;
    limits.max_lexer_states = 50_000;
    limits.max_grammar_size = 200_000;
    limits.verbose_errors = false;
    Ok(factory)
}
