//! Random histories: a test as many times as it takes, each with a seed of its own.

/// Runs the cases on all cores. One that fails names its seed; `KUBE2IRSA_SEED` repeats it alone.
pub(crate) fn all(cases: u64, case: impl Fn(&mut fastrand::Rng) + Sync) {
    if let Ok(seed) = std::env::var("KUBE2IRSA_SEED") {
        return case(&mut fastrand::Rng::with_seed(seed.parse().unwrap()));
    }
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let case = &case;
            scope.spawn(move || {
                for seed in (thread..cases).step_by(usize::try_from(threads).unwrap()) {
                    let run = std::panic::AssertUnwindSafe(|| case(&mut fastrand::Rng::with_seed(seed)));
                    if let Err(panic) = std::panic::catch_unwind(run) {
                        eprintln!("KUBE2IRSA_SEED={seed}");
                        std::panic::resume_unwind(panic);
                    }
                }
            });
        }
    });
}
