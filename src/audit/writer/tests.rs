use std::{
    io::{BufRead as _, BufReader},
    os::unix::fs::{PermissionsExt as _, symlink},
    time::Instant,
};

use nix::{sys::stat::Mode, unistd::mkfifo};

use super::*;

const SOON: Duration = Duration::from_secs(30);

fn writer(path: &Path) -> (Writer, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new().unwrap());
    (Writer::start(Destination::File(path.to_owned()), Arc::clone(&metrics)).unwrap(), metrics)
}

fn count(metrics: &Metrics, result: &str) -> u64 {
    metrics.audit_lines.with_label_values(&[result]).get()
}

fn line(number: usize) -> Vec<u8> {
    format!("{{\"line\":{number}}}\n").into_bytes()
}

#[tokio::test]
async fn lines_are_appended_whatever_becomes_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let (path, rotated) = (folder.path().join("audit.log"), folder.path().join("audit.log.1"));
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let (writer, metrics) = writer(&path);
    writer.push(line(1));
    writer.written(SOON).await;
    assert_eq!(read(&path), "{\"line\":1}\n");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    fs::rename(&path, &rotated).unwrap();
    writer.push(line(2));
    writer.written(SOON).await;
    assert_eq!((read(&rotated).as_str(), read(&path).as_str()), ("{\"line\":1}\n", "{\"line\":2}\n"));

    // As logrotate's copytruncate does.
    fs::write(&path, "").unwrap();
    writer.push(line(3));
    writer.written(SOON).await;
    assert_eq!(read(&path), "{\"line\":3}\n", "it goes on at the new end, without a hole");

    fs::remove_file(&path).unwrap();
    writer.push(line(4));
    writer.written(SOON).await;
    assert_eq!(read(&path), "{\"line\":4}\n");

    let (another, _) = self::writer(&path);
    another.push(line(5));
    another.written(SOON).await;
    writer.push(line(6));
    writer.written(SOON).await;
    assert_eq!(read(&path), "{\"line\":4}\n{\"line\":5}\n{\"line\":6}\n");
    assert_eq!((count(&metrics, "written"), metrics.audit_lines_waiting.get()), (5, 0));
}

#[tokio::test]
async fn a_link_that_comes_in_place_of_the_file_is_not_followed_even_to_the_file_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (path, moved) = (folder.path().join("audit.log"), folder.path().join("moved"));
    let (writer, _) = writer(&path);
    writer.push(line(1));
    writer.written(SOON).await;
    fs::rename(&path, &moved).unwrap();
    symlink(&moved, &path).unwrap();
    writer.push(line(2));
    writer.written(SOON).await;
    assert!(writer.shared.done.borrow().fails);
    assert_eq!(fs::read_to_string(&moved).unwrap(), "{\"line\":1}\n");
    fs::remove_file(&path).unwrap();
    writer.end(SOON).await;
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"line\":2}\n");
}

#[test]
fn a_file_is_ours_alone_if_nobody_else_can_read_or_write_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    fs::write(&path, "").unwrap();
    let whose = |mode| {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        whose(&fs::metadata(&path).unwrap())
    };
    assert_eq!([0o600, 0o400, 0o711].map(whose), [None, None, None]);
    for mode in [0o640, 0o620, 0o604, 0o602] {
        let said = whose(mode).unwrap();
        assert!(said.contains(&format!("mode {mode:04o}")), "{said}");
    }
    assert_eq!(super::whose(&fs::metadata("/dev/null").unwrap()), None);
    std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
    assert_eq!(whose(0o600).unwrap(), "is owned by the user 65534");
}

#[tokio::test]
async fn what_was_left_within_a_line_does_not_spoil_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    fs::write(&path, "{\"line\":0}\n{\"li").unwrap();
    let (writer, _) = writer(&path);
    writer.push(line(1));
    writer.written(SOON).await;
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"line\":0}\n{\"li\n{\"line\":1}\n");
}

#[tokio::test]
async fn what_cannot_be_written_waits_and_what_is_too_much_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let away = folder.path().join("not-there");
    let path = away.join("audit.log");
    let (writer, metrics) = writer(&path);
    for number in 0..WAITING + 10 {
        writer.push(line(number));
    }
    // One more than the queue holds is in the thread's hands, if it has taken it yet.
    let lost = count(&metrics, "failed") + count(&metrics, "dropped");
    assert!((9..=10).contains(&lost), "{lost}");
    let begun = Instant::now();
    writer.written(SOON).await;
    assert!(begun.elapsed() < SOON, "nobody waits for what is known to fail");

    fs::create_dir(&away).unwrap();
    writer.end(SOON).await;
    assert_eq!(count(&metrics, "written") + lost, WAITING as u64 + 10);
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count() as u64, count(&metrics, "written"));
    assert!(text.starts_with("{\"line\":0}\n{\"line\":1}\n"), "the first come first");
}

#[tokio::test]
async fn a_pipe_that_nobody_reads_holds_nobody_up_for_long() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
    let (writer, metrics) = writer(&path);
    let long = [vec![b'a'; 4000], b"\n".to_vec()].concat();
    let begun = Instant::now();
    // More than the pipe and the queue take.
    for _ in 0..WAITING + 100 {
        writer.push(long.clone());
    }
    writer.written(Duration::from_millis(100)).await;
    writer.written(SOON).await;
    assert!(begun.elapsed() < SOON);
    let dropped = count(&metrics, "dropped");
    assert!(dropped > 0);
    assert!(metrics.audit_lines_waiting.get() > 0);

    let reader = BufReader::new(File::open(&path).unwrap());
    let expected = WAITING as u64 + 100 - dropped;
    let whole =
        reader.lines().take(usize::try_from(expected).unwrap()).filter(|line| line.as_ref().unwrap().len() == 4000);
    assert_eq!(whole.count() as u64, expected, "what waited is there, whole");
    writer.end(SOON).await;
    assert_eq!(count(&metrics, "written"), expected);
}
