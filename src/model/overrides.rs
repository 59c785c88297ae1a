//! What a caller changes of a model before it is read: metadata in general, and the position encoding.

use crate::gguf::{Gguf, GgufError, MetadataOverride, Value};

/// How frequencies of the position encoding (RoPE) are scaled for contexts longer than those of the training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency is divided by the same factor.
    Linear,
    /// The low frequencies are divided, the high ones stay (YaRN).
    Yarn,
}

impl RopeScaling {
    /// Its name in GGUF files.
    pub fn name(self) -> &'static str {
        match self {
            RopeScaling::None => "none",
            RopeScaling::Linear => "linear",
            RopeScaling::Yarn => "yarn",
        }
    }
}

/// What is changed of a model's metadata. The file stays as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelOverrides {
    /// Values in place of the file's; of several for one key the last counts.
    pub metadata: Vec<MetadataOverride>,
    /// Base frequency of the position encoding.
    pub rope_freq_base: Option<f32>,
    /// How its frequencies are scaled.
    pub rope_scaling: Option<RopeScaling>,
    /// By how much the context grows, which divides the frequencies. Without effect where they are not scaled.
    pub rope_scale: Option<f32>,
    /// Tokens of the context that the model was trained with, for YaRN.
    pub rope_original_context: Option<u32>,
}

impl ModelOverrides {
    /// Changes the metadata of an open file.
    ///
    /// # Errors
    /// A value of another kind than the file's, or no architecture whose keys they could be.
    pub fn apply(&self, gguf: &mut Gguf) -> Result<(), GgufError> {
        self.metadata.iter().try_for_each(|with| gguf.override_metadata(with))?;
        let rope: [(&str, Option<Value>); 4] = [
            ("rope.freq_base", self.rope_freq_base.map(Value::F32)),
            ("rope.scaling.type", self.rope_scaling.map(|scaling| scaling.name().into())),
            ("rope.scaling.factor", self.rope_scale.map(Value::F32)),
            ("rope.scaling.original_context_length", self.rope_original_context.map(Value::U32)),
        ];
        for (key, value) in rope {
            let Some(value) = value else { continue };
            let architecture = gguf.require("general.architecture", "a string", gguf.str("general.architecture")?)?;
            let with = MetadataOverride::new(format!("{architecture}.{key}"), value);
            gguf.override_metadata(&with)?;
        }
        Ok(())
    }
}
