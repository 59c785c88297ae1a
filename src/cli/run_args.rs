//! The flags of a run: everything that answers a prompt.

use std::path::{Path, PathBuf};

use clap::Args;
use spts::tokenizer::TemplateVariables;

use super::inputs;
use super::options::{DeviceArgs, DocumentMemory, MemoryArgs, OverrideArgs, SamplingArgs, SptsArgs};

/// Answering a prompt.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Model, a GGUF file
    #[arg(
        short,
        long,
        value_name = "FILE",
        required_unless_present = "list_devices",
        help_heading = "Prompt and answer"
    )]
    pub model: Option<PathBuf>,
    /// Document, a UTF-8 text file; - is standard input
    #[arg(short, long, value_name = "FILE", help_heading = "Prompt and answer")]
    pub file: Option<PathBuf>,
    /// Prompt, or the question that follows the document
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, required_unless_present_any = ["file", "list_devices"], help_heading = "Prompt and answer")]
    pub prompt: Option<String>,
    /// Questions about the document, one a line, each answered by itself; - is standard input
    #[arg(
        long,
        value_name = "FILE",
        requires = "file",
        conflicts_with_all = ["prompt", "no_cnv", "dump_selection"],
        help_heading = "Documents"
    )]
    pub questions: Option<PathBuf>,
    /// Keep what was read of the document in FILE, and begin with it the next time; one of the same model that begins with
    /// other text, or skips from another layer on, is replaced
    #[arg(long, value_name = "FILE", requires = "file", help_heading = "Documents")]
    pub prompt_cache: Option<PathBuf>,
    /// Leave the file of --prompt-cache as it is
    #[arg(long, requires = "prompt_cache", help_heading = "Documents")]
    pub prompt_cache_ro: bool,
    /// Where the document's residual stream waits for questions
    #[arg(long, value_name = "WHERE", value_enum, default_value_t = DocumentMemory::Device, help_heading = "Documents")]
    pub document_memory: DocumentMemory,
    /// System prompt
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        conflicts_with = "no_cnv",
        help_heading = "Prompt and answer"
    )]
    pub system_prompt: Option<String>,
    /// Use the prompt as it is, without the model's chat template
    #[arg(long, alias = "no-conversation", help_heading = "Prompt and answer")]
    pub no_cnv: bool,
    /// Another chat template than the model's: a Jinja file, chatml, or the Jinja text itself
    #[arg(
        long,
        value_name = "WHAT",
        allow_hyphen_values = true,
        conflicts_with = "no_cnv",
        help_heading = "Prompt and answer"
    )]
    pub chat_template: Option<String>,
    /// Variables for the chat template, as a JSON object
    #[arg(long, value_name = "JSON", conflicts_with = "no_cnv", value_parser = template_variables, help_heading = "Prompt and answer")]
    pub chat_template_kwargs: Option<TemplateVariables>,
    /// Have the chat template ask for an answer without thinking: enable_thinking is false
    #[arg(long, conflicts_with = "no_cnv", help_heading = "Prompt and answer")]
    pub no_think: bool,
    /// Most tokens of the answer; 0 computes the prompt only, -1 goes on to the answer's end
    #[arg(short = 'n', long, alias = "n-predict", value_name = "N", default_value_t = -1, value_parser = clap::value_parser!(i32).range(-1..), help_heading = "Prompt and answer")]
    pub predict: i32,
    /// Forbid the tokens with which the model would end its answer
    #[arg(long, help_heading = "Prompt and answer")]
    pub ignore_eos: bool,
    /// End the answer before TEXT; may be given several times
    #[arg(
        short,
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        value_parser = clap::builder::NonEmptyStringValueParser::new(),
        help_heading = "Prompt and answer"
    )]
    pub reverse_prompt: Vec<String>,
    /// Print one JSON object instead of the text
    #[arg(long, help_heading = "Prompt and answer")]
    pub json: bool,
    /// Per token, add the K most likely ones to the JSON
    #[arg(long, value_name = "K", requires = "json", value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Prompt and answer")]
    pub logprobs: Option<u32>,
    /// Say what is placed where, and let ggml speak
    #[arg(short, long, help_heading = "Prompt and answer")]
    pub verbose: bool,
    #[command(flatten)]
    pub spts: SptsArgs,
    /// Write the chosen tokens of every layer to a JSON file
    #[arg(long, value_name = "FILE", conflicts_with = "no_spts", help_heading = "Token skipping (SPTS)")]
    pub dump_selection: Option<PathBuf>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Tokens of prompt and answer together; 0 is what the model was trained with [default: 0]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1 << 30), help_heading = "Context and memory")]
    pub ctx_size: Option<u32>,
    #[command(flatten)]
    pub memory: MemoryArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub overrides: OverrideArgs,
    /// Name the devices of this machine, and stop
    #[arg(long, help_heading = "Model and device")]
    pub list_devices: bool,
}

impl RunArgs {
    /// Every file that a run may read.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = inputs::with_those_beside(self.model.as_deref());
        let template = self.chat_template.as_deref().map(Path::new);
        let given = [self.file.as_deref(), self.questions.as_deref(), template, self.prompt_cache.as_deref()];
        files.extend(given.into_iter().flatten().chain(self.spts.files()).map(Path::to_owned));
        files
    }

    /// As [`RunArgs::files`], without a file that this run both reads and writes.
    pub fn files_but(&self, own: &Path) -> Vec<PathBuf> {
        let cache = self.prompt_cache.as_deref();
        let mut files = RunArgs { prompt_cache: None, ..self.clone() }.files();
        files.extend(cache.filter(|cache| *cache != own).map(Path::to_owned));
        files
    }
}

fn template_variables(json: &str) -> Result<TemplateVariables, String> {
    TemplateVariables::parse(json).map_err(|e| e.to_string())
}
