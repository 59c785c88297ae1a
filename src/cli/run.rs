//! Answering prompts: `spts-cli -m model.gguf -f long.txt -p question`, many questions about a document, or a conversation.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use spts::ggml::backend;
use spts::method;
use spts::method::spts::preset::LeftDense;
use spts::method::spts::schedule::Schedule;
use spts::output_file::OutputFile;
use spts::plan::{Plan, PlanOptions};
use spts::proxies::Found;
use spts::session::generate::{Generation, StopReason};
use spts::session::prefill::PrefillReport;
use spts::tokenizer::{ChatPrompt, Message};
use spts::{Model, ModelFile, Session, SessionOptions, runtime};

use super::failure::Failure;
use super::prompt::{self, Document, Prompt};
use super::prompt_cache::PromptCache;
use super::proxies::{self, Waiting};
use super::runner::{Answer, Runner};
use super::{RunArgs, conversation, inputs, interrupt, note, questions, schedule, warn};
use crate::report::{self, SharedProgress};

/// From so many tokens on a prompt is one that other models' schedules would shorten.
const LONG: usize = 10 * 1024;

/// What is asked.
enum Asked {
    /// One prompt.
    Once(Message),
    /// Questions about a document, each by itself.
    Questions(Document, Vec<String>),
    /// Whatever the user types.
    Conversation(Document),
}

impl Asked {
    fn read(args: &RunArgs) -> Result<Asked, Failure> {
        if let (Some(path), Some(file)) = (&args.questions, &args.file) {
            if path == Path::new("-") && file == Path::new("-") {
                return Err(Failure::Failed("--questions - and -f -: standard input is read once".into()));
            }
            let document = Document::read(file)?;
            return Ok(Asked::Questions(document, questions::read(path)?));
        }
        match &args.file {
            Some(file) if wants_conversation(args) => Ok(Asked::Conversation(Document::read(file)?)),
            _ => Ok(Asked::Once(Prompt::read(args.file.as_deref(), args.prompt.as_deref())?.message())),
        }
    }

    /// The prompt whose length decides what is needed.
    fn first(&self) -> Message {
        match self {
            Asked::Once(message) => message.clone(),
            Asked::Questions(document, questions) => {
                // A longer one that does not fit fails by itself.
                document.with(questions.iter().min_by_key(|q| q.len()).map_or("?", String::as_str))
            }
            Asked::Conversation(document) => document.with("?"),
        }
    }

    fn document(&self) -> Option<&Document> {
        match self {
            Asked::Once(_) => None,
            Asked::Questions(document, _) | Asked::Conversation(document) => Some(document),
        }
    }
}

/// A document without a question, and somebody at the terminal who has one.
fn wants_conversation(args: &RunArgs) -> bool {
    let asks_nothing = args.prompt.as_deref().is_none_or(spts::tokenizer::is_without_text);
    let one_answer = args.json || args.no_cnv || args.dump_selection.is_some() || args.predict == 0;
    asks_nothing && !one_answer && io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Reads what is asked, opens the model, answers, reports.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let asked = Asked::read(args)?;
    // Files that cannot be written are found before the work, not after it.
    interrupt::install()?;
    let dump = args.dump_selection.as_deref().map(|path| create_dump(path, args)).transpose()?;
    runtime::set_log_level(if args.verbose { runtime::Level::All } else { runtime::Level::Silent });

    let progress: SharedProgress = SharedProgress::new();
    let device_bytes_before = backend::gpu_bytes_used();
    let start = Instant::now();
    // What is wrong with the prompt, the schedule or the sidecar is found before any weight is placed.
    let path = args.model.as_deref().unwrap_or(Path::new(""));
    let mut file = ModelFile::open_with(path, args.device.open_options(), &args.overrides.library())?;
    warn(&file);
    set_chat_template(args, &mut file)?;
    let schedule = schedule::of_model(&args.spts, file.gguf().path(), file.shape())?;
    let noted = note_unread_input(args);
    if !args.no_cnv && file.chat_template().is_builtin() {
        note("the model has no chat template: the text goes in without one (--no-cnv also reads control tokens in it)");
    }
    let first = inputs::encode(args, &file, &[asked.first()])?;
    check_context(args, &file, first.tokens.len())?;
    // One that lies beside the model has another name.
    let is_dense = schedule.as_ref().is_none_or(|s| s.name == "dense");
    if args.spts.is_default()
        && is_dense
        && first.tokens.len() >= LONG
        && let Some(why) = Schedule::left_dense(file.shape())
    {
        let why = match why {
            LeftDense::Narrow => {
                format!("answers of models narrower than {} lose too much by it", Schedule::WIDTH_THAT_SKIPS)
            }
            LeftDense::Unmeasured => {
                "what mixtures of experts, models with recurrent layers and Gemma 4 lose by it has not been measured"
                    .into()
            }
        };
        note(&format!("nothing is skipped: {why}; --schedule fast or early skips all the same"));
    }
    args.spts.check_draft()?;
    args.spts.method(schedule.clone()).budgets(file.shape(), method::Prompt::of(first.tokens.len()))?;
    let found = proxies::find(&file, args.spts.sidecar.as_deref(), schedule.as_ref(), first.tokens.len())?;
    let n_document = match (&asked, asked.document()) {
        (Asked::Once(_), _) => first.question.as_ref().map_or(first.tokens.len(), |q| q.start),
        (_, Some(document)) => shared_tokens(args, &file, document, &first.tokens)?,
        (_, None) => 0,
    };
    let cache = PromptCache::open(args, &file, n_ctx(args))?;
    let model = place(args, file, &progress)?;
    let name = args.spts.method(schedule.clone()).name().to_owned();
    let session = session(args, &model, schedule, found, &first.tokens, &progress)?;
    interrupt::stops(&session.interrupt_flag());
    let load = start.elapsed();

    let mut runner = Runner { args, session, schedule: name, load, device_bytes_before, progress, read: None };
    let mut cache_failed = None;
    if asked.document().is_some() || cache.is_some() {
        cache_failed = runner.read_document(&first.tokens[..n_document], cache)?;
    }
    match asked {
        Asked::Once(_) => answer_once(args, &mut runner, &first, dump, noted)?,
        Asked::Questions(document, all) => questions::answer(&mut runner, &document, &all)?,
        Asked::Conversation(document) => conversation::hold(&mut runner, &document)?,
    }
    cache_failed.map_or(Ok(()), Err)
}

/// How many tokens a document's prompts have in common, whatever is asked.
fn shared_tokens(args: &RunArgs, file: &ModelFile, document: &Document, first: &[u32]) -> Result<usize, Failure> {
    // It begins with none of the letters of a question.
    let other = inputs::encode(args, file, &[document.with("1")])?.tokens;
    let shared = first.iter().zip(&other).take_while(|(a, b)| a == b).count();
    if 2 * shared < first.len() && first.len() > 1000 {
        note("the model's chat template puts the question before the document: each question reads all of it");
    }
    Ok(shared)
}

/// Answers one prompt, and says what it took.
fn answer_once(
    args: &RunArgs,
    runner: &mut Runner,
    prompt: &ChatPrompt,
    dump: Option<OutputFile>,
    noted: bool,
) -> Result<(), Failure> {
    let mut answer = Answer::new(!args.json);
    let generation = runner.answer(prompt, &mut answer)?;
    if let Some(mut out) = dump {
        let json = serde_json::json!({ "n_tokens": prompt.tokens.len(), "layers": generation.prefill.selection });
        serde_json::to_writer(&mut out, &json)
            .map_err(|e| Failure::Failed(format!("{}: cannot write: {e}", out.path().display())))?;
        out.finish()?;
    }
    let report = runner.report_with_document(&generation, answer.text().to_owned());
    if args.json {
        runner.write_json(&report)?;
    } else {
        answer.end_line()?;
    }
    if !noted {
        // What comes late is still not read.
        note_unread_input(args);
    }
    end(generation.stop, &generation, runner.session.n_ctx())?;
    if args.json {
        return Ok(());
    }
    let _ = write!(io::stderr(), "\n{report}");
    if args.verbose {
        used(&runner.session, &generation.prefill);
    }
    Ok(())
}

/// What becomes of a command whose answer stopped for this reason.
fn end(stop: StopReason, generation: &Generation, n_ctx: usize) -> Result<(), Failure> {
    match stop {
        StopReason::Interrupted => return Err(Failure::Interrupted),
        StopReason::Failed => {
            return Err(generation.failure.as_ref().map_or(Failure::Interrupted, |e| Failure::Failed(e.to_string())));
        }
        StopReason::ContextFull => {
            note(&format!("the answer stops here: the context of {n_ctx} tokens is full; -c sets its size"));
        }
        _ => {}
    }
    Ok(())
}

/// `-v`: what the prefill took.
fn used(session: &Session, prefill: &PrefillReport) {
    let mib = |bytes: usize| report::mib(bytes as u64);
    let own = session.n_bytes().saturating_sub(prefill.scratch_bytes);
    note(&format!(
        "tiles of {} rows; hidden states {}, scratch {}, caches and masks {}",
        report::grouped(prefill.tile),
        mib(prefill.slot_bytes),
        mib(prefill.scratch_bytes),
        mib(own)
    ));
}

/// The file of `--dump-selection`, which is none of the files that the run reads.
fn create_dump(path: &Path, args: &RunArgs) -> Result<OutputFile, Failure> {
    inputs::create_output(path, &args.files())
}

fn place(args: &RunArgs, file: ModelFile, progress: &SharedProgress) -> Result<Arc<Model>, Failure> {
    let shown = progress.clone();
    args.device.set_up_process();
    let options = args.device.model_options(Some(Box::new(move |fraction| shown.lock().load(fraction))));
    let model = Model::place(file, options);
    progress.lock().clear();
    Ok(model?)
}

/// Says that nothing reads the text on standard input, if there is some.
fn note_unread_input(args: &RunArgs) -> bool {
    let is_read = [&args.file, &args.questions].into_iter().flatten().any(|path| path == Path::new("-"));
    let unread = !is_read && prompt::standard_input_waits();
    if unread {
        note("there is text on standard input, and nothing reads it; -f - takes it as the document");
    }
    unread
}

/// What the flags say about the chat template; notes what of it changes nothing.
fn set_chat_template(args: &RunArgs, file: &mut ModelFile) -> Result<(), Failure> {
    let mut template = file.chat_template().clone();
    if let Some(what) = &args.chat_template {
        template = template.replaced_by(what).map_err(spts::Error::from)?;
    }
    if let Some(variables) = &args.chat_template_kwargs {
        template = template.with_variables(variables);
    }
    if args.no_think {
        template = template.without_thinking();
    }
    for name in template.unused_variables() {
        note(&format!("the chat template does not mention {name}: setting it changes nothing"));
    }
    file.set_chat_template(template);
    Ok(())
}

pub(super) fn n_ctx(args: &RunArgs) -> Option<usize> {
    args.ctx_size.filter(|&n| n > 0).map(|n| n as usize)
}

fn check_context(args: &RunArgs, model: &ModelFile, n_tokens: usize) -> Result<(), Failure> {
    let n_ctx_train = model.hparams().n_ctx_train;
    let n_ctx = n_ctx(args).unwrap_or(n_ctx_train);
    if n_tokens > n_ctx {
        return Err(spts::Error::ContextFull { n_tokens, n_ctx, n_ctx_train }.into());
    }
    note_beyond_training("-c", n_ctx, n_ctx_train);
    Ok(())
}

/// Says that `flag` asks for more tokens than the model knows, if it does.
pub fn note_beyond_training(flag: &str, n_tokens: usize, n_ctx_train: usize) {
    if n_tokens <= n_ctx_train {
        return;
    }
    note(&format!(
        "{flag} {n_tokens}: the model was trained with {n_ctx_train} tokens; beyond them its answers get worse"
    ));
}

fn session(
    args: &RunArgs,
    model: &Arc<Model>,
    mut schedule: Option<Schedule>,
    found: Found,
    prompt: &[u32],
    progress: &SharedProgress,
) -> Result<Session, Failure> {
    let n_threads = args.device.threads.map(usize::from);
    let waiting = Waiting { model, prompt, n_ctx: n_ctx(args), n_threads };
    let sidecar = proxies::settle(found, &waiting, schedule.as_mut(), &mut progress.lock())?;
    if args.verbose {
        describe(args, model, schedule.as_ref(), prompt.len())?;
    }
    let options = SessionOptions {
        n_ctx: n_ctx(args),
        n_ubatch: args.memory.n_ubatch(),
        n_threads,
        cache_type_k: args.memory.cache_type_k.library(),
        cache_type_v: args.memory.cache_type_v.library(),
        method: args.spts.method(schedule),
        sidecar,
        draft: args.spts.open_draft(&args.device)?,
        record_selection: args.dump_selection.is_some(),
        document_memory: args.document_memory.library(),
    };
    Ok(Session::new(model.clone(), options)?)
}

/// `-v`: where things are, and what they take.
fn describe(args: &RunArgs, model: &Model, schedule: Option<&Schedule>, n_tokens: usize) -> Result<(), Failure> {
    let placement = model.placement();
    for (i, device) in placement.devices.iter().enumerate() {
        let layers = placement.layer.iter().filter(|&&l| l == i).count();
        note(&format!("{device}: {layers} of {} layers", placement.layer.len()));
    }
    let switches = placement.layer.windows(2).filter(|pair| pair[0] != pair[1]).count();
    let elsewhere = placement.layer.iter().zip(&placement.experts).filter(|(layer, experts)| layer != experts).count();
    note(&format!(
        "{switches} changes of device between layers; {}",
        match elsewhere {
            0 => "no operation of a layer runs elsewhere".to_owned(),
            n => format!("the experts of {n} layers lie on the CPU"),
        }
    ));
    note(&format!("weights rearranged in memory: {}", report::mib(model.repacked_bytes() as u64)));
    if !model.file().unused_tensors().is_empty() {
        note(&format!("tensors that are not used: {}", model.file().unused_tensors().join(", ")));
    }
    if let Some(schedule) = schedule {
        let defaults = PlanOptions::default();
        let options = PlanOptions {
            k_bytes: args.memory.cache_type_k.bytes(),
            v_bytes: args.memory.cache_type_v.bytes(),
            n_ubatch: args.memory.n_ubatch().unwrap_or(defaults.n_ubatch),
            ..defaults
        };
        let plan = Plan::new(model.shape(), schedule, n_tokens, &options)?;
        let _ = write!(io::stderr(), "{plan}");
    }
    Ok(())
}
