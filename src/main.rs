//! The daemon's binary: memory, arguments, TLS provider, exit code.

use std::{
    alloc::System,
    fs,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _, error::ErrorKind};
use clap_complete::Shell;
use kube2irsa::{
    admin::{self, client, explain::Explanation},
    app,
    cli::{Cli, Command, ExplainArgs, Output, Probe, ProbeArgs, RulesCommand},
    config::{self, Config, ConfigErrors, Removal},
    intercept::{
        self,
        check::{self, Expected},
    },
    memory,
    operator::{OperatorError, Verdict, doctor, explain_all, migrate, oidc, trust_policy},
    telemetry,
};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
};
use zeroizing_alloc::ZeroAlloc;

/// Overwrites whatever is given back: secrets pass through buffers that are not ours, of the HTTP stack, TLS, the SDK.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

/// `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;
/// `EX_UNAVAILABLE`.
const UNAVAILABLE: u8 = 69;
const FAILURE: u8 = 1;

fn main() -> ExitCode {
    if let Err(error) = memory::seal() {
        return fail(FAILURE, &format!("the kernel does not keep our memory to ourselves: {error}"));
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing better can be done about a closed standard error.
            let _ = error.print();
            let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked_for { ExitCode::SUCCESS } else { ExitCode::from(USAGE) };
        }
    };
    let done = match cli.command {
        Command::Run(args) => Config::new(&args).map(run),
        Command::Probe(args) => Ok(probe(&args)),
        Command::Explain(args) => explain(&args),
        Command::Oidc(args) => operator(async |out| oidc::run(&args, out).await),
        Command::Migrate(args) => operator(async |out| migrate::run(&args, out).await),
        Command::TrustPolicy(args) => operator(async |out| trust_policy::run(&args, out).await),
        Command::Doctor(args) => operator(async |out| doctor::run(&args, out).await),
        Command::Completions { shell } => Ok(completions(shell)),
        Command::Man { directory } => Ok(manual(directory.as_deref())),
        Command::Rules { command: RulesCommand::Show } => Ok(show_rules()),
        Command::Rules { command: RulesCommand::Check(args) } => config::expected(&args).map(|it| check_rules(&it)),
        Command::Rules { command: RulesCommand::Remove(args) } => Removal::new(&args).map(remove_rules),
    };
    match done {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => fail(FAILURE, &format!("{error:#}")),
        Err(errors) => fail(USAGE, &errors.to_string()),
    }
}

fn run(config: Config) -> anyhow::Result<ExitCode> {
    telemetry::start(config.log_format, config.log_level);
    let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect::<Vec<_>>();
    for name in Cli::unknown(variables.iter().map(String::as_str)) {
        tracing::warn!("{name} sets no flag of this version: is it misspelt?");
    }
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed"))?;
    let runtime = runtime::Builder::new_multi_thread().worker_threads(config.worker_threads).enable_all().build()?;
    let done = runtime.block_on(async {
        let mut stop = std::pin::pin!(told_to_stop()?);
        let bound = tokio::select! {
            bound = app::build(config) => bound?,
            () = stop.as_mut() => return Ok(()),
        };
        bound.run(stop).await
    });
    // A name that is still being resolved would hold up the end.
    runtime.shutdown_background();
    done.map(|()| ExitCode::SUCCESS)
}

fn told_to_stop() -> io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// It is asked every few seconds: no runtime, no TLS.
fn probe(args: &ProbeArgs) -> anyhow::Result<ExitCode> {
    let target = match args.probe {
        Probe::Ready => "/readyz",
        Probe::Live => "/healthz",
    };
    let (code, said) = match client::get(&args.admin_socket, target) {
        Ok((200, said)) => (ExitCode::SUCCESS, said),
        Ok((_, said)) => (ExitCode::from(FAILURE), said),
        Err(error) => (ExitCode::from(FAILURE), format!("{error}\n")),
    };
    write!(io::stdout().lock(), "{said}")?;
    Ok(code)
}

fn explain(args: &ExplainArgs) -> Result<anyhow::Result<ExitCode>, ConfigErrors> {
    if args.all {
        return operator(async |out| explain_all::run(args, out).await);
    }
    let pod = args.pod.as_deref().unwrap_or_default();
    let is_name =
        |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
    match pod.split_once('/') {
        Some((namespace, name)) if is_name(namespace) && is_name(name) => Ok(explained(args, pod)),
        _ => Err(ConfigErrors(vec![format!("{pod:?}: is not NAMESPACE/POD")])),
    }
}

fn explained(args: &ExplainArgs, pod: &str) -> anyhow::Result<ExitCode> {
    let body = match client::get(&args.admin_socket, &format!("{}{pod}", admin::EXPLAIN)) {
        Ok((200, body)) => body,
        Ok((_, why)) => return Ok(fail(UNAVAILABLE, &why)),
        Err(error) => return Ok(fail(UNAVAILABLE, &error.to_string())),
    };
    let explanation = serde_json::from_str::<Explanation>(&body).map_err(|error| {
        anyhow::anyhow!("the daemon's answer is not understood: is it of another version? ({error})")
    })?;
    let mut out = io::stdout().lock();
    match args.output {
        Output::Text => write!(out, "{explanation}")?,
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&explanation)?)?,
    }
    Ok(if explanation.well { ExitCode::SUCCESS } else { ExitCode::from(FAILURE) })
}

/// A command for the operator: with a runtime and TLS, and what it writes on standard output.
fn operator<F>(command: F) -> Result<anyhow::Result<ExitCode>, ConfigErrors>
where
    F: AsyncFnOnce(&mut dyn io::Write) -> Result<Verdict, OperatorError>,
{
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        return Ok(Ok(fail(FAILURE, "another TLS provider is installed")));
    }
    let runtime = match for_a_moment() {
        Ok(runtime) => runtime,
        Err(error) => return Ok(Err(error.into())),
    };
    let mut out = Vec::new();
    let done = runtime.block_on(command(&mut out));
    if let Err(error) = io::stdout().lock().write_all(&out) {
        return Ok(Err(error.into()));
    }
    match done {
        Ok(Verdict::Well) => Ok(Ok(ExitCode::SUCCESS)),
        Ok(Verdict::Findings) => Ok(Ok(ExitCode::from(FAILURE))),
        Err(OperatorError::Usage(errors)) => Err(errors),
        Err(OperatorError::Unavailable(why)) => Ok(Ok(fail(UNAVAILABLE, &why))),
        Err(OperatorError::Other(error)) => Ok(Err(error)),
    }
}

fn completions(shell: Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kube2irsa", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

fn manual(directory: Option<&Path>) -> anyhow::Result<ExitCode> {
    let command = Cli::command();
    match directory {
        Some(directory) => fs::create_dir_all(directory)
            .and_then(|()| clap_mangen::generate_to(command, directory))
            .with_context(|| directory.display().to_string())?,
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            io::stdout().lock().write_all(&page)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show_rules() -> anyhow::Result<ExitCode> {
    let (rules, unread) = for_a_moment()?.block_on(intercept::show());
    let mut out = io::stdout().lock();
    match (rules.as_str(), unread.as_slice()) {
        ("", []) => writeln!(out, "no rules of kube2irsa on this node")?,
        (rules, _) => write!(out, "{rules}")?,
    }
    let unread = unread.iter().map(|error| format!("not looked at: {error}")).collect::<Vec<_>>();
    if unread.is_empty() { Ok(ExitCode::SUCCESS) } else { Ok(fail(FAILURE, &unread.join("\n"))) }
}

fn check_rules(expected: &Expected) -> anyhow::Result<ExitCode> {
    let facts = for_a_moment()?.block_on(check::Facts::read(expected.admin));
    let findings = check::findings(expected, &facts);
    let mut out = io::stdout().lock();
    for finding in &findings {
        writeln!(out, "{finding}")?;
    }
    Ok(if check::is_well(&findings) { ExitCode::SUCCESS } else { ExitCode::from(FAILURE) })
}

/// Of tables that are not those that a daemon here writes.
const NOT_LOOKED_AT: &str =
    "rules of an earlier run with other rights or commands would stay, for this cannot be looked at";

fn remove_rules(removal: Removal) -> anyhow::Result<ExitCode> {
    let runtime = for_a_moment()?;
    if !removal.stay {
        runtime.block_on(app::removal::once(&removal))?;
        for tables in runtime.block_on(intercept::unseen()) {
            let _ = writeln!(io::stderr(), "kube2irsa: warning: {NOT_LOOKED_AT}: {tables}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    telemetry::start(removal.log_format, removal.log_level);
    for tables in runtime.block_on(intercept::unseen()) {
        tracing::warn!("{NOT_LOOKED_AT}: {tables}");
    }
    runtime.block_on(async { app::removal::stay(removal, told_to_stop()?).await }).map(|()| ExitCode::SUCCESS)
}

fn for_a_moment() -> io::Result<runtime::Runtime> {
    runtime::Builder::new_current_thread().enable_all().build()
}

fn fail(code: u8, text: &str) -> ExitCode {
    for line in text.lines() {
        let _ = writeln!(io::stderr(), "kube2irsa: {line}");
    }
    ExitCode::from(code)
}
