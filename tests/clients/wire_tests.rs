use super::*;

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A frame of the pod's link: Ethernet, IPv4 without options, TCP without options.
fn frame(from_pod: bool, number: u32, opens: bool, payload: &[u8]) -> Vec<u8> {
    let (pod, service) = ([10, 244, 0, 10], METADATA_ADDRESS.octets());
    let (from, to) = if from_pod { (pod, service) } else { (service, pod) };
    let (from_port, to_port) = if from_pod { (40_000_u16, 80_u16) } else { (80, 40_000) };
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0x00, 0x45, 0]);
    frame.extend(u16::try_from(40 + payload.len()).unwrap().to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend(from);
    frame.extend(to);
    frame.extend(from_port.to_be_bytes());
    frame.extend(to_port.to_be_bytes());
    frame.extend(number.to_be_bytes());
    frame.extend([0, 0, 0, 0, 0x50, if opens { 0x02 } else { 0x10 }, 0, 0, 0, 0, 0, 0]);
    frame.extend(payload);
    // What is shorter than the link's least is filled up.
    frame.resize(frame.len().max(60), 0);
    frame
}

fn take(stream: &mut Stream, number: u32, payload: &[u8], millis: u64) {
    let frame = frame(true, number, false, payload);
    stream.take(&Segment::of(&frame).unwrap(), at(millis));
}

fn stream(bytes: &[u8]) -> Stream {
    Stream { bytes: bytes.to_vec(), arrivals: vec![(bytes.len(), at(5))], ..Stream::default() }
}

fn exchanges(sent: &str, received: &str) -> Vec<Exchange> {
    let connection = Connection { opened: at(1), sent: stream(sent.as_bytes()), received: stream(received.as_bytes()) };
    connection.exchanges()
}

#[test]
fn only_what_goes_between_pod_and_service_is_taken() {
    let opening = frame(true, 7, true, b"");
    let segment = Segment::of(&opening).unwrap();
    assert!(segment.from_pod && segment.opens && segment.payload.is_empty(), "and not what fills it up");
    assert_eq!((segment.port, segment.number), (40_000, 7));
    assert!(!Segment::of(&frame(false, 7, true, b"")).unwrap().from_pod);
    let mut others = frame(true, 7, true, b"");
    others[14 + 16] = 10;
    assert!(Segment::of(&others).is_none());
    assert!(Segment::of(&opening[..20]).is_none());
}

#[test]
fn segments_that_come_twice_or_early_are_put_in_their_places() {
    let mut stream = Stream { next: u32::MAX - 1, ..Stream::default() };
    take(&mut stream, u32::MAX - 1, b"GET", 1);
    take(&mut stream, 7, b"nes", 2);
    take(&mut stream, u32::MAX - 1, b"GET ", 3);
    take(&mut stream, 2, b"/ o", 4);
    take(&mut stream, 2, b"/ o", 5);
    assert_eq!(stream.bytes, b"GET / o");
    take(&mut stream, 5, b"", 6);
    take(&mut stream, 4, b"o\r\nnes", 7);
    assert_eq!(stream.bytes, b"GET / o\r\nnes");
    assert_eq!((stream.arrival(0), stream.arrival(4), stream.arrival(99)), (Some(at(1)), Some(at(4)), None));
}

#[test]
fn requests_and_answers_are_paired() {
    let seen = exchanges(
        "PUT /latest/api/token HTTP/1.1\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
         HEAD /latest/ HTTP/1.1\r\n\r\n\
         GET /latest/meta-data/iam/security-credentials/web HTTP/1.1\r\nX-aws-EC2-metadata-token: t\r\n\r\n\
         GET /latest/meta-data/iam/security-credentials HTTP/1.1\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ntoken\
         HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n\
         HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
    );
    let names = seen.iter().map(Exchange::name).collect::<Vec<_>>();
    assert_eq!(names, ["PUT token", "HEAD /latest/", "keys 503", "role (no answer)"]);
    assert_eq!(seen.iter().map(|exchange| exchange.token).collect::<Vec<_>>(), [false, false, true, false]);
    assert_eq!((seen[0].asked, seen[0].answered, seen[3].answered), (at(5), Some(at(5)), None));
    let traffic = Traffic { connections: 1, contact: Some(at(1)), exchanges: seen };
    assert_eq!(traffic.version(), "v1 and v2");
    assert_eq!((traffic.keys(), traffic.span()), (0, Some(at(4))), "keys that were refused are none");
}

#[test]
fn what_is_repeated_is_told_once() {
    let get = "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\n\r\n";
    let not_found = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
    let traffic = Traffic { connections: 1, contact: None, exchanges: exchanges(&get.repeat(3), &not_found.repeat(2)) };
    assert_eq!(traffic.story(), "2 × role 404, role (no answer)");
    assert_eq!((traffic.summary(), traffic.version()), ("2 × role 404, role (no answer)".to_owned(), "v1"));
}
