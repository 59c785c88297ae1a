//! Answering a prompt: `spts-cli -m model.gguf -f long.txt -p question`.

use std::cell::RefCell;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spts::ggml::backend;
use spts::method;
use spts::method::spts::schedule::Schedule;
use spts::method::spts::schedule_file::path_beside;
use spts::method::spts::sidecar::Sidecar;
use spts::output_file::OutputFile;
use spts::plan::{Plan, PlanOptions};
use spts::proxies::Found;
use spts::session::generate::{GenerateOptions, Generation, StopReason};
use spts::session::prefill::{PrefillOptions, PrefillProgress, PrefillReport};
use spts::session::sampler::Sampler;
use spts::tokenizer::{ChatPrompt, Message, StreamDecoder, Tokenizer};
use spts::{Model, ModelFile, Session, SessionOptions, runtime};

use super::failure::Failure;
use super::prompt::Prompt;
use super::proxies::{self, Waiting};
use super::{RunArgs, interrupt, note, prompt, schedule, warn};
use crate::report::{self, PrefillStep, Progress, RunReport, Stop};

/// From so many tokens on a prompt is one that other models' schedules would shorten.
const LONG: usize = 10 * 1024;

type SharedProgress = Rc<RefCell<Progress>>;

/// Reads the prompt, opens the model, answers, reports.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let message = Prompt::read(args.file.as_deref(), args.prompt.as_deref())?.message();
    // Files that cannot be written are found before the work, not after it.
    interrupt::install()?;
    let dump = args.dump_selection.as_deref().map(|path| create_dump(path, args)).transpose()?;
    runtime::set_log_level(if args.verbose { runtime::Level::All } else { runtime::Level::Silent });

    let progress: SharedProgress = Rc::new(RefCell::new(Progress::new()));
    let device_bytes_before = backend::gpu_bytes_used();
    let start = Instant::now();
    // What is wrong with the prompt, the schedule or the sidecar is found before any weight is placed.
    let file = ModelFile::open(args.model.as_deref().unwrap_or(Path::new("")), args.device.open_options())?;
    warn(&file);
    let schedule = schedule::of_model(&args.spts, file.gguf().path(), file.shape())?;
    let noted = note_unread_input(args);
    let ChatPrompt { tokens, question, .. } = encode(args, &file, message)?;
    check_context(args, &file, tokens.len())?;
    // One that lies beside the model has another name.
    let is_dense = schedule.as_ref().is_none_or(|s| s.name == "dense");
    if args.spts.is_default() && is_dense && Schedule::is_too_narrow(file.shape()) && tokens.len() >= LONG {
        note(&format!(
            "nothing is skipped: answers of models narrower than {} lose too much by it; --schedule fast or early skips all the same",
            Schedule::WIDTH_THAT_SKIPS
        ));
    }
    args.spts.check_draft()?;
    args.spts.method(schedule.clone()).budgets(file.shape(), method::Prompt::of(tokens.len()))?;
    let found = proxies::find(&file, args.spts.sidecar.as_deref(), schedule.as_ref(), tokens.len())?;
    let model = place(args, file, &progress)?;
    let load = start.elapsed();
    let name = args.spts.method(schedule.clone()).name().to_owned();
    let mut session = session(args, &model, schedule, found, &tokens, &progress)?;
    interrupt::stops(&session.interrupt_flag());

    let mut answer = Answer { stream: !args.json, text: String::new(), error: None };
    let known = PrefillOptions { question_start: question.map(|q| q.start) };
    let generation = generate(args, &mut session, &tokens, known, &progress, &mut answer);
    progress.borrow_mut().clear();
    let generation = match generation {
        Ok(generation) => generation,
        Err(e) => {
            answer.end_line();
            return Err(e);
        }
    };
    if let Some(e) = answer.error {
        return Err(Failure::stdout(e));
    }
    if let Some(mut out) = dump {
        let json = serde_json::json!({ "n_tokens": tokens.len(), "layers": generation.prefill.selection });
        serde_json::to_writer(&mut out, &json)
            .map_err(|e| Failure::Failed(format!("{}: cannot write: {e}", out.path().display())))?;
        out.finish()?;
    }
    let device_bytes = backend::gpu_bytes_used().saturating_sub(device_bytes_before);
    let report = report(args, &session, &name, load, device_bytes, &generation, answer.text.clone());
    if args.json {
        let line = serde_json::to_string(&report).map_err(|e| Failure::Failed(format!("JSON: {e}")))?;
        crate::write_stdout(&(line + "\n"))?;
    } else {
        answer.end_line();
        if let Some(e) = answer.error {
            return Err(Failure::stdout(e));
        }
    }
    if !noted {
        // What comes late is still not read.
        note_unread_input(args);
    }
    match generation.stop {
        StopReason::Interrupted => return Err(Failure::Interrupted),
        StopReason::Failed => return Err(generation.failure.map_or(Failure::Interrupted, Into::into)),
        StopReason::ContextFull => {
            note(&format!(
                "the answer stops here: the context of {} tokens is full; -c sets its size",
                session.n_ctx()
            ));
        }
        _ => {}
    }
    if args.json {
        return Ok(());
    }
    let _ = write!(io::stderr(), "\n{report}");
    if args.verbose {
        used(&session, &generation.prefill);
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
    let sidecar = args.model.as_deref().map(Sidecar::path_beside);
    let schedule = args.model.as_deref().map(path_beside);
    let own = [args.model.as_deref(), sidecar.as_deref(), schedule.as_deref(), args.file.as_deref()];
    let inputs: Vec<&Path> = own.into_iter().flatten().chain(args.spts.files()).collect();
    Ok(OutputFile::create(path, &inputs)?)
}

fn place(args: &RunArgs, file: ModelFile, progress: &SharedProgress) -> Result<Arc<Model>, Failure> {
    let shown = progress.clone();
    args.device.set_up_process();
    let options = args.device.model_options(Some(Box::new(move |fraction| shown.borrow_mut().load(fraction))));
    let model = Model::place(file, options);
    progress.borrow_mut().clear();
    Ok(model?)
}

/// Says that nothing reads the text on standard input, if there is some.
fn note_unread_input(args: &RunArgs) -> bool {
    let unread = args.file.as_deref() != Some(Path::new("-")) && prompt::standard_input_waits();
    if unread {
        note("there is text on standard input, and nothing reads it; -f - takes it as the document");
    }
    unread
}

/// The prompt's tokens, and where its question stands. A model without a chat template is no chat model: it gets the text
/// alone. Control tokens in it count only with `--no-cnv`, where the text is a template of its author's own.
fn encode(args: &RunArgs, model: &ModelFile, message: Message) -> Result<ChatPrompt, Failure> {
    let tokenizer = model.tokenizer();
    let template = model.chat_template();
    if args.no_cnv || template.is_builtin() {
        if args.system_prompt.is_some() {
            return Err(Failure::Failed(
                "-sys: this model has no chat template, and so no place for a system prompt; put it into -p".into(),
            ));
        }
        if !args.no_cnv {
            note(
                "the model has no chat template: the text goes in without one (--no-cnv also reads control tokens in it)",
            );
        }
        let prompt = ChatPrompt::raw(tokenizer, &message, args.no_cnv);
        note_doubled_bos(tokenizer, &prompt.tokens, "the text");
        return Ok(prompt);
    }
    let system = args.system_prompt.as_deref().map(|s| Message::new("system", s));
    let messages: Vec<Message> = system.into_iter().chain([message]).collect();
    let prompt = template.encode(tokenizer, &messages, true).map_err(spts::Error::from)?;
    note_doubled_bos(tokenizer, &prompt.tokens, "the model's chat template");
    Ok(prompt)
}

/// Models are trained with one BOS; a second one makes their answers worse.
fn note_doubled_bos(tokenizer: &Tokenizer, tokens: &[u32], whose: &str) {
    if let (Some(bos), [first, second, ..]) = (tokenizer.bos(), tokens)
        && *first == bos
        && *second == bos
    {
        let text = tokenizer.token_text(bos);
        note(&format!("the prompt begins with two {text}: {whose} brings one that is not needed"));
    }
}

fn n_ctx(args: &RunArgs) -> Option<usize> {
    args.ctx_size.filter(|&n| n > 0).map(|n| n as usize)
}

fn check_context(args: &RunArgs, model: &ModelFile, n_tokens: usize) -> Result<(), Failure> {
    let n_ctx_train = model.hparams().n_ctx_train;
    let n_ctx = n_ctx(args).unwrap_or(n_ctx_train);
    if n_tokens > n_ctx {
        return Err(spts::Error::ContextFull { n_tokens, n_ctx, n_ctx_train }.into());
    }
    if n_ctx > n_ctx_train {
        note_beyond_training("-c", n_ctx, n_ctx_train);
    }
    Ok(())
}

/// Says that `flag` asks for more tokens than the model knows.
pub fn note_beyond_training(flag: &str, n_tokens: usize, n_ctx_train: usize) {
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
    let sidecar = proxies::settle(found, &waiting, schedule.as_mut(), &mut progress.borrow_mut())?;
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
    note(&format!("{switches} changes of device between layers; no operation of a layer runs elsewhere"));
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

/// The answer as it comes.
struct Answer {
    stream: bool,
    text: String,
    error: Option<io::Error>,
}

impl Answer {
    fn push(&mut self, text: &str) {
        self.text.push_str(text);
        if self.stream {
            self.write(text);
        }
    }

    fn write(&mut self, text: &str) {
        if self.error.is_some() {
            return;
        }
        let mut out = io::stdout().lock();
        self.error = out.write_all(text.as_bytes()).and_then(|()| out.flush()).err();
    }

    /// A text ends with a newline.
    fn end_line(&mut self) {
        if self.stream && !self.text.is_empty() && !self.text.ends_with('\n') {
            self.write("\n");
        }
    }
}

fn generate(
    args: &RunArgs,
    session: &mut Session,
    tokens: &[u32],
    known: PrefillOptions,
    progress: &SharedProgress,
    answer: &mut Answer,
) -> Result<Generation, Failure> {
    let fresh_seed =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_nanos() as u64);
    let mut sampler = Sampler::new(args.sampling.params(fresh_seed)).map_err(spts::Error::from)?;
    let options = GenerateOptions {
        n_predict: usize::try_from(args.predict).unwrap_or(usize::MAX),
        stop_at_eog: !args.ignore_eos,
        logprobs: args.logprobs.unwrap_or(0) as usize,
        prompt: known,
    };
    let start = Instant::now();
    let mut on_progress = |p: PrefillProgress| {
        progress.borrow_mut().prefill(&PrefillStep {
            layer: p.layer + 1,
            n_layer: p.n_layer,
            active: p.active,
            n_tokens: p.n_tokens,
            fraction: p.fraction.into(),
            elapsed: start.elapsed(),
        });
        ControlFlow::Continue(())
    };
    let model = session.model().clone();
    let mut decoder = StreamDecoder::new(model.tokenizer());
    let mut on_token = |token| {
        progress.borrow_mut().clear();
        answer.push(&decoder.push(token));
        // Without a reader the rest of the answer is wasted work.
        if answer.error.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let generation = session.generate(tokens, &mut sampler, options, &mut on_progress, &mut on_token)?;
    answer.push(&decoder.flush());
    Ok(generation)
}

fn report(
    args: &RunArgs,
    session: &Session,
    schedule: &str,
    load: Duration,
    device_bytes: u64,
    generation: &Generation,
    text: String,
) -> RunReport {
    let prefill = &generation.prefill;
    let dense = prefill.layers.is_empty();
    let n_layer = session.model().shape().n_layer;
    let layers = match dense {
        true => vec![(prefill.n_tokens, prefill.n_tokens, prefill.n_tokens); n_layer],
        false => prefill.layers.iter().map(|l| (l.candidates, l.active_attn, l.active_ffn)).collect(),
    };
    RunReport {
        prompt_tokens: prefill.n_tokens,
        generated: generation.tokens.clone(),
        text,
        logprobs: args.logprobs.map(|_| generation.logprobs.clone()),
        stop: match generation.stop {
            StopReason::Eog => Stop::Eog,
            StopReason::ContextFull => Stop::Context,
            StopReason::Interrupted => Stop::Interrupted,
            StopReason::Failed => Stop::Failed,
            // Nothing but the number of tokens is left: this program's callback ends no answer.
            _ => Stop::Length,
        },
        load_s: load.as_secs_f64(),
        ttft_s: (!generation.tokens.is_empty()).then_some(generation.ttft),
        prefill_tps: report::per_second(prefill.n_tokens, prefill.seconds),
        decode_tps: report::per_second(generation.decoded, generation.decode_seconds),
        cache_kept: prefill.cache_kept,
        schedule: if dense { "dense" } else { schedule }.to_owned(),
        stages: report::stages(layers),
        peak_rss_bytes: report::peak_rss_bytes(),
        peak_device_bytes: device_bytes,
    }
}
