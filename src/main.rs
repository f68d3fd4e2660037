//! The daemon's binary: memory, arguments, TLS provider, exit code.

use std::{alloc::System, io::Write as _, process::ExitCode};

use clap::{Parser as _, error::ErrorKind};
use kube2irsa::{
    app,
    cli::{Cli, Command, RulesCommand},
    config::Config,
    intercept, memory, telemetry,
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
        Command::Run(args) => match Config::new(&args) {
            Ok(config) => run(config),
            Err(errors) => return fail(USAGE, &errors.to_string()),
        },
        Command::Rules { command: RulesCommand::Remove } => remove_rules(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(FAILURE, &format!("{error:#}")),
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    telemetry::start(config.log_format, config.log_level);
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed"))?;
    let runtime = runtime::Builder::new_multi_thread().worker_threads(config.worker_threads).enable_all().build()?;
    let done = runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let mut stop = std::pin::pin!(stop);
        let bound = tokio::select! {
            bound = app::build(config) => bound?,
            () = stop.as_mut() => return Ok(()),
        };
        bound.run(stop).await
    });
    // A name that is still being resolved would hold up the end.
    runtime.shutdown_background();
    done
}

fn remove_rules() -> anyhow::Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(intercept::remove_all()).map_err(|errors| {
        let errors = errors.iter().map(|error| format!("not removed: {error}")).collect::<Vec<_>>();
        anyhow::Error::msg(errors.join("\n"))
    })
}

fn fail(code: u8, text: &str) -> ExitCode {
    for line in text.lines() {
        let _ = writeln!(std::io::stderr(), "kube2irsa: {line}");
    }
    ExitCode::from(code)
}
