//! What becomes of which weights.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Deserializer};

use crate::error::{Error, io_at};

/// How the weights of a class are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// As the source stores them; blocks of GGUF files as bf16.
    Keep,
    /// As affine codes of so many bits.
    Bits(u8),
}

/// The widths that codes can have.
pub const WIDTHS: [u8; 6] = [2, 3, 4, 5, 6, 8];

impl std::str::FromStr for Width {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<u8>() {
            _ if text == "keep" => Ok(Self::Keep),
            Ok(bits) if WIDTHS.contains(&bits) => Ok(Self::Bits(bits)),
            _ => Err("must be 2, 3, 4, 5, 6, 8 or keep".to_owned()),
        }
    }
}

impl<'de> Deserialize<'de> for Width {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Bits(i64),
            Name(String),
            Other(serde::de::IgnoredAny),
        }
        let text = match Raw::deserialize(deserializer)? {
            Raw::Bits(bits) => bits.to_string(),
            Raw::Name(name) => name,
            Raw::Other(_) => String::new(),
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl std::fmt::Display for Width {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Keep => f.write_str("keep"),
            Self::Bits(bits) => write!(f, "{bits}"),
        }
    }
}

/// The width of every class of weights. Norms and other vectors stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// Routed experts.
    pub experts: Width,
    /// Embedding, attention, delta nets, dense blocks.
    pub trunk: Width,
    /// Shared experts.
    pub shared: Width,
    /// Routers and the gates of shared experts: 8 bits, or kept.
    pub router: Width,
    /// The head, and an embedding that serves as the head.
    pub head: Width,
    /// Columns that share a scale and a bias: 32, 64 or 128.
    pub group: u16,
}

/// Changes of a recipe; what is absent stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changes {
    /// See [`Recipe::experts`].
    pub experts: Option<Width>,
    /// See [`Recipe::trunk`].
    pub trunk: Option<Width>,
    /// See [`Recipe::shared`]; where only the trunk is given, shared experts follow it.
    pub shared: Option<Width>,
    /// See [`Recipe::router`].
    pub router: Option<Width>,
    /// See [`Recipe::head`]; where only the trunk is given, the head follows it.
    pub head: Option<Width>,
    /// See [`Recipe::group`].
    pub group: Option<u16>,
}

impl Recipe {
    /// A recipe by its name, or from a TOML file with the fields of [`Changes`].
    ///
    /// `4bit` and its like store everything at that width, routers at 8, as mlx-lm's converter does; below
    /// four bits the trunk, of which every token reads all, stays at 4. `experts-4bit` and its like leave
    /// all but the routed experts as they are.
    pub fn named(name: &str) -> Result<Self, Error> {
        if Path::new(name).extension().is_some_and(|extension| extension == "toml") {
            let path = Path::new(name);
            let text = fs::read_to_string(path).map_err(io_at(path))?;
            let changes: Changes = toml::from_str(&text).map_err(|error| {
                let what = error.to_string().trim_end().to_owned();
                Error::Source { path: path.to_owned(), what }
            })?;
            return Self::named("4bit")?.changed(&changes);
        }
        let alone = name.strip_prefix("experts-");
        let bits = alone.unwrap_or(name).strip_suffix("bit").and_then(|bits| bits.parse().ok());
        let Some(bits) = bits.filter(|bits| WIDTHS.contains(bits)) else {
            let known = ["", "experts-"]
                .iter()
                .flat_map(|prefix| WIDTHS.iter().map(move |bits| format!("{prefix}{bits}bit")));
            let known = known.collect::<Vec<_>>().join(", ");
            return Err(Error::UnknownRecipe { name: name.to_owned(), known });
        };
        let keep = Width::Keep;
        let (experts, group) = (Width::Bits(bits), 64);
        Ok(match alone {
            Some(_) => Self { experts, trunk: keep, shared: keep, router: keep, head: keep, group },
            None => {
                let trunk = Width::Bits(bits.max(4));
                let router = Width::Bits(8);
                Self { experts, trunk, shared: trunk, router, head: trunk, group }
            }
        })
    }

    /// The recipe with changes.
    pub fn changed(mut self, changes: &Changes) -> Result<Self, Error> {
        let Changes { experts, trunk, shared, router, head, group } = *changes;
        self.experts = experts.unwrap_or(self.experts);
        self.shared = shared.or(trunk).unwrap_or(self.shared);
        self.head = head.or(trunk).unwrap_or(self.head);
        self.trunk = trunk.unwrap_or(self.trunk);
        self.router = router.unwrap_or(self.router);
        self.group = group.unwrap_or(self.group);
        let wrong = |field: &str, found: String, expected: &str| {
            Err(Error::Recipe { field: field.to_owned(), found, expected: expected.to_owned() })
        };
        if !matches!(self.router, Width::Keep | Width::Bits(8)) {
            let found = format!("{} bits", self.router);
            return wrong("router", found, "8 or keep: what is read of experts hangs on it");
        }
        if ![32, 64, 128].contains(&self.group) {
            return wrong("group", self.group.to_string(), "32, 64 or 128");
        }
        Ok(self)
    }

    /// The width of a tensor of the trunk.
    pub fn of_trunk(&self, canonical: &str, head_is_embedding: bool) -> Width {
        let is_router = canonical.ends_with(".mlp.gate.weight")
            || canonical.ends_with(".shared_expert_gate.weight");
        if is_router {
            self.router
        } else if canonical.contains(".mlp.shared_expert.") {
            self.shared
        } else if canonical.starts_with("lm_head.")
            || (head_is_embedding && canonical.starts_with("embed_tokens."))
        {
            self.head
        } else {
            self.trunk
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_changes_make_recipes() {
        let recipe = Recipe::named("2bit").expect("it is known");
        assert_eq!((recipe.experts, recipe.trunk), (Width::Bits(2), Width::Bits(4)));
        assert_eq!(recipe.of_trunk("layers.0.mlp.gate.weight", false), Width::Bits(8));
        let alone = Recipe::named("experts-3bit").expect("it is known");
        assert_eq!((alone.experts, alone.head), (Width::Bits(3), Width::Keep));
        let changes = Changes { trunk: Some(Width::Bits(6)), ..Changes::default() };
        let changed = recipe.changed(&changes).expect("it is sound");
        assert_eq!((changed.head, changed.shared), (Width::Bits(6), Width::Bits(6)));
        assert_eq!(changed.of_trunk("embed_tokens.weight", true), changed.head);
    }

    #[test]
    fn faults_of_a_recipe_are_named() {
        let message = |result: Result<Recipe, Error>| result.expect_err("it is wrong").to_string();
        assert!(message(Recipe::named("7bit")).contains("experts-2bit"));
        let recipe = Recipe::named("4bit").expect("it is known");
        let router = Changes { router: Some(Width::Bits(4)), ..Changes::default() };
        assert!(message(recipe.changed(&router)).contains("router is 4 bits"));
        let group = Changes { group: Some(48), ..Changes::default() };
        assert!(message(recipe.changed(&group)).contains("32, 64 or 128"));
        let parse = |text: &str| toml::from_str::<Changes>(text).map_err(|error| error.to_string());
        assert!(parse("expert = 2").expect_err("no such field").contains("expert"));
        for width in ["7", "-2", "300", "2.5", "[2]", "\"all\""] {
            let message = parse(&format!("experts = {width}")).expect_err("no such width");
            assert!(message.contains("2, 3, 4, 5, 6, 8 or keep"), "{message}");
        }
        assert!(parse("group = 70000").expect_err("no such group").contains("group"));
        let changes = parse("experts = 2\ntrunk = \"keep\"").expect("it is sound");
        assert_eq!(changes.trunk, Some(Width::Keep));
    }
}
