//! The library's error: what each part reports, under one roof. Every message is one line.

/// Why a call of the library failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that is no valid GGUF, or can't be read.
    #[error(transparent)]
    Gguf(#[from] crate::gguf::GgufError),
    /// A file that cannot be written where it should be.
    #[error(transparent)]
    Output(#[from] crate::output_file::OutputError),
    /// A GGUF that is no model that can be run.
    #[error(transparent)]
    Model(#[from] crate::model::ModelError),
    /// A vocabulary or chat template that can't be used.
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
    /// A device, its memory, its kernels.
    #[error(transparent)]
    Ggml(#[from] crate::ggml::GgmlError),
    /// A schedule that does not fit the model.
    #[error(transparent)]
    Schedule(#[from] crate::method::spts::schedule::ScheduleError),
    /// Another method that does not fit the model.
    #[error(transparent)]
    Rival(#[from] crate::method::rivals::error::RivalError),
    /// A method that reads with a draft, and there is none.
    #[error(
        "method {method} reads the prompt with a draft model first, but none is given: name a smaller one of the same vocabulary"
    )]
    DraftMissing {
        /// The method.
        method: String,
    },
    /// A method that chooses a prompt's tokens before any layer reads them, or skips from the first layer on.
    #[error("method {method} leaves nothing of a document that would serve another question: it reads every prompt anew")]
    MethodReadsAnew {
        /// The method.
        method: String,
    },
    /// A file of a document that cannot be used.
    #[error(transparent)]
    Document(#[from] crate::session::document_error::DocumentError),
    /// A model that scores tokens by what is no number.
    #[error("the scores that {model} gives the prompt's tokens are no numbers: its weights are damaged, or the prompt overflows it")]
    NoScores {
        /// Name of the model.
        model: String,
    },
    /// A draft that does not know the model's tokens.
    #[error("the draft {draft} has another vocabulary than the model: expected one of the same family")]
    DraftVocabulary {
        /// Name of the draft.
        draft: String,
    },
    /// A file of proxies that does not fit the model.
    #[error(transparent)]
    Sidecar(#[from] crate::method::spts::sidecar::SidecarError),
    /// A model file that can't be quantized.
    #[error(transparent)]
    Quantize(#[from] crate::quantize::QuantizeError),
    /// Sampling parameters out of range.
    #[error(transparent)]
    Sampler(#[from] crate::session::sampler::SamplerError),
    /// The model computed logits that are no numbers.
    #[error("{file}: {source}")]
    Logits {
        /// The model's file.
        file: String,
        /// What is wrong with the logits.
        source: crate::session::sampler::SamplerError,
    },
    /// A bug in a graph pass, found before anything ran.
    #[error("internal: {0}")]
    Graph(#[from] crate::graph::verify::VerifyError),
    /// More tokens than the context holds.
    #[error(
        "the prompt has {n_tokens} tokens, but the context holds {n_ctx}: shorten it, or make the context larger (this model was trained with {n_ctx_train})"
    )]
    ContextFull {
        /// Tokens wanted.
        n_tokens: usize,
        /// Size of the context.
        n_ctx: usize,
        /// What the model was trained with.
        n_ctx_train: usize,
    },
    /// A prompt without tokens.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A question that is no part of its prompt.
    #[error("the question begins at token {question_start}, but the prompt has tokens 0 to {last}; give the place of its first token", last = n_tokens.saturating_sub(1))]
    QuestionOutside {
        /// Where the question was said to begin.
        question_start: usize,
        /// Tokens of the prompt.
        n_tokens: usize,
    },
    /// A token id that the vocabulary lacks.
    #[error("token id {id} is outside the vocabulary of {n_vocab}")]
    BadToken {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        n_vocab: usize,
    },
    /// A quantized cache over heads that are no whole number of blocks.
    #[error("a q8_0 cache needs a head dimension divisible by 32, this model has {head_dim}: take f16")]
    CacheType {
        /// Elements of a head.
        head_dim: usize,
    },
    /// Layers that read each other's keys, on two devices.
    #[error(
        "{file}: the layers {first} to {last} read the same keys and values, so they go to one device: put none there, or at least {n_layers} layers"
    )]
    SharedKeysParted {
        /// The model's file.
        file: String,
        /// The first of the layers.
        first: usize,
        /// The last one.
        last: usize,
        /// How many they are.
        n_layers: usize,
    },
    /// The schedule scores FFNs by proxies, and there are none.
    #[error(
        "this schedule scores FFNs by low-rank proxies, but none are loaded: make them, or score without them"
    )]
    ProxiesMissing,
    /// Tokens that can't be forgotten by themselves: which entries of the caches are theirs is not known.
    #[error(
        "{n} tokens can't be kept: of the first {least} not all entries are there, so they are kept together or not at all"
    )]
    Truncate {
        /// Tokens that were to stay.
        n: usize,
        /// The fewest that can stay, besides none.
        least: usize,
    },
    /// Tokens that can't be forgotten: of recurrent layers only the last state is there.
    #[error(
        "{n} of {read} tokens can't be kept: recurrent layers know the state behind all of them alone; clear, and read those again"
    )]
    TruncateState {
        /// Tokens that were to stay.
        n: usize,
        /// Tokens that were read.
        read: usize,
    },
    /// Decoding before any prefill.
    #[error("decode needs a prefill first")]
    NothingPrefilled,
    /// Calibration could not be done.
    #[error(transparent)]
    Calibration(#[from] crate::proxies::error::CalibrationError),
    /// Something cannot be measured.
    #[error(transparent)]
    Eval(#[from] crate::eval::error::EvalError),
    /// Stopped by the caller.
    #[error("interrupted")]
    Interrupted,
}

impl From<crate::method::MethodError> for Error {
    fn from(e: crate::method::MethodError) -> Self {
        match e {
            crate::method::MethodError::Schedule(e) => e.into(),
            crate::method::MethodError::Rival(e) => e.into(),
        }
    }
}

/// A result with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
