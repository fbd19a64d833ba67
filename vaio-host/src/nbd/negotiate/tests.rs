use super::{super::proto::Parsed, *};

const EXPORT: &str = "disk";

fn offers() -> Vec<Offer> {
    let offer = |name: &str, min| Offer {
        name: name.to_owned(),
        description: format!("about {name}"),
        size: 1 << 20,
        flags: transmission_flag::HAS_FLAGS,
        blocks: BlockSizes {
            min,
            preferred: 4096,
            max: 32 << 20,
        },
        contexts: vec!["base:allocation".into(), "vaio:dirty".into()],
    };
    vec![offer(EXPORT, 512), offer("large", 4096)]
}

/// What one option leads to: the replies and what follows.
fn step(state: &mut Negotiation, option: ClientOption) -> (Vec<OptionReply>, Next) {
    let code = option.code();
    let option = Ok(option);
    let mut out = Vec::new();
    let next = state.step(&offers(), FramedOption { code, option }, &mut out);
    let (mut replies, mut rest) = (Vec::new(), &out[..]);
    while !rest.is_empty() {
        match super::super::proto::option_reply_parse(code, rest) {
            Ok(Parsed::Item { item, used }) => {
                replies.push(item);
                rest = &rest[used..];
            }
            other => panic!("no reply, {other:?}"),
        }
    }
    (replies, next)
}

fn last_error((replies, next): (Vec<OptionReply>, Next)) -> Refusal {
    assert_eq!(next, Next::Continue);
    match replies.last() {
        Some(OptionReply::Error { kind, .. }) => kind.unwrap(),
        other => panic!("no error, {other:?}"),
    }
}

fn info(export: &str, infos: &[InfoType]) -> InfoRequest {
    InfoRequest {
        export: export.to_owned(),
        infos: infos.iter().map(|info| info.to_wire()).collect(),
    }
}

fn query(export: &str, queries: &[&str]) -> MetaQuery {
    MetaQuery {
        export: export.to_owned(),
        queries: queries.iter().map(|&name| name.to_owned()).collect(),
    }
}

fn go(state: &mut Negotiation, export: &str) -> Session {
    let (replies, next) = step(
        state,
        ClientOption::Go(info(export, &[InfoType::BlockSize])),
    );
    assert_eq!(replies.last(), Some(&OptionReply::Ack));
    match next {
        Next::Transmit(session) => session,
        other => panic!("no transmission, {other:?}"),
    }
}

fn names(replies: &[OptionReply]) -> Vec<(u32, &str)> {
    replies
        .iter()
        .filter_map(|reply| match reply {
            OptionReply::MetaContext { id, name } => Some((*id, name.as_str())),
            _ => None,
        })
        .collect()
}

#[test]
fn go_by_name_or_default_begins_transmission() {
    for (name, export) in [(EXPORT, 0), ("", 0), ("large", 1)] {
        let session = go(&mut Negotiation::new(Tls::Off), name);
        assert_eq!((session.export, session.mode), (export, ReplyMode::Simple));
    }
}

#[test]
fn info_tells_what_was_asked_and_stays_in_the_handshake() {
    let mut state = Negotiation::new(Tls::Off);
    let all = [InfoType::Name, InfoType::Description, InfoType::BlockSize];
    let (replies, next) = step(&mut state, ClientOption::Info(info("", &all)));
    assert_eq!(next, Next::Continue);
    assert!(replies.contains(&OptionReply::Info(Info::Name(EXPORT.into()))));
    assert!(replies.contains(&OptionReply::Info(Info::Description("about disk".into()))));
    assert!(replies.contains(&OptionReply::Info(Info::BlockSize(offers()[0].blocks))));
    assert_eq!(replies.last(), Some(&OptionReply::Ack));
}

#[test]
fn unknown_export_is_refused_and_export_name_closes() {
    let mut state = Negotiation::new(Tls::Off);
    let nowhere = || info("nowhere", &[]);
    assert_eq!(
        last_error(step(&mut state, ClientOption::Go(nowhere()))),
        Refusal::ErrUnknown
    );
    assert_eq!(
        last_error(step(&mut state, ClientOption::Info(nowhere()))),
        Refusal::ErrUnknown
    );
    let mut out = Vec::new();
    let framed = |name: &str| FramedOption {
        code: 1,
        option: Ok(ClientOption::ExportName(name.into())),
    };
    assert_eq!(
        state.step(&offers(), framed("nowhere"), &mut out),
        Next::Close
    );
    assert!(out.is_empty());
    assert!(matches!(
        state.step(&offers(), framed(EXPORT), &mut out),
        Next::Transmit(_)
    ));
    assert_eq!(out.len(), 134);
    state.no_zeroes(true);
    out.clear();
    let _ = state.step(&offers(), framed(""), &mut out);
    assert_eq!(out.len(), 10);
}

#[test]
fn large_blocks_need_a_client_that_asks_for_them() {
    let mut state = Negotiation::new(Tls::Off);
    let blind = step(&mut state, ClientOption::Go(info("large", &[])));
    assert_eq!(last_error(blind), Refusal::ErrBlockSizeReqd);
    assert_eq!(go(&mut state, "large").export, 1);
}

#[test]
fn list_names_every_export() {
    let (replies, next) = step(&mut Negotiation::new(Tls::Off), ClientOption::List);
    assert_eq!((replies.len(), next), (3, Next::Continue));
    assert!(matches!(&replies[1], OptionReply::Server { name, .. } if name == "large"));
}

#[test]
fn tls_required_refuses_everything_before_it_and_voids_what_was_agreed() {
    let mut state = Negotiation::new(Tls::Required);
    for option in [
        ClientOption::List,
        ClientOption::Go(info("", &[])),
        ClientOption::Info(info("", &[])),
        ClientOption::StructuredReply,
        ClientOption::ExtendedHeaders,
        ClientOption::ListMetaContext(query("", &[])),
        ClientOption::SetMetaContext(query("", &[])),
        ClientOption::Unknown(77),
    ] {
        assert_eq!(last_error(step(&mut state, option)), Refusal::ErrTlsReqd);
    }
    let export_name = ClientOption::ExportName(String::new());
    assert_eq!(step(&mut state.clone(), export_name).1, Next::Close);
    assert_eq!(step(&mut state.clone(), ClientOption::Abort).1, Next::Close);

    assert_eq!(step(&mut state, ClientOption::StartTls).1, Next::StartTls);
    state.tls_started();
    assert_eq!(
        last_error(step(&mut state, ClientOption::StartTls)),
        Refusal::ErrInvalid
    );
    assert_eq!(go(&mut state, "").mode, ReplyMode::Simple);
}

#[test]
fn offered_tls_resets_the_reply_mode() {
    let mut state = Negotiation::new(Tls::Offered);
    let _ = step(&mut state, ClientOption::ExtendedHeaders);
    let _ = step(
        &mut state,
        ClientOption::SetMetaContext(query("", &["base:allocation"])),
    );
    assert_eq!(step(&mut state, ClientOption::StartTls).1, Next::StartTls);
    state.tls_started();
    let session = go(&mut state, "");
    assert_eq!(
        (session.mode, session.contexts),
        (ReplyMode::Simple, vec![])
    );
    let off = step(&mut Negotiation::new(Tls::Off), ClientOption::StartTls);
    assert_eq!(last_error(off), Refusal::ErrUnsup);
}

#[test]
fn reply_modes_go_up_and_never_down() {
    let mut state = Negotiation::new(Tls::Off);
    let ack = |state: &mut _, option| assert_eq!(step(state, option).0, [OptionReply::Ack]);
    ack(&mut state, ClientOption::StructuredReply);
    let again = step(&mut state, ClientOption::StructuredReply);
    assert_eq!(last_error(again), Refusal::ErrInvalid);
    ack(&mut state, ClientOption::ExtendedHeaders);
    let down = step(&mut state, ClientOption::StructuredReply);
    assert_eq!(last_error(down), Refusal::ErrExtHeaderReqd);
    let again = step(&mut state, ClientOption::ExtendedHeaders);
    assert_eq!(last_error(again), Refusal::ErrInvalid);
    assert_eq!(go(&mut state, "").mode, ReplyMode::Extended);
}

#[test]
fn flags_depend_on_the_mode() {
    let flags = |option: Option<ClientOption>| {
        let mut state = Negotiation::new(Tls::Off);
        option.map(|option| step(&mut state, option));
        let (replies, _) = step(&mut state, ClientOption::Info(info("", &[])));
        let export = replies.into_iter().find_map(|reply| match reply {
            OptionReply::Info(Info::Export { flags, .. }) => Some(flags),
            _ => None,
        });
        export.unwrap() & !transmission_flag::HAS_FLAGS
    };
    let (df, payload) = (
        transmission_flag::SEND_DF,
        transmission_flag::BLOCK_STATUS_PAYLOAD,
    );
    assert_eq!(flags(None), 0);
    assert_eq!(flags(Some(ClientOption::StructuredReply)), df);
    assert_eq!(flags(Some(ClientOption::ExtendedHeaders)), df | payload);
}

#[test]
fn contexts_are_listed_by_name_and_namespace() {
    let mut state = Negotiation::new(Tls::Off);
    let list = |queries: &[&str]| ClientOption::ListMetaContext(query("", queries));
    assert_eq!(last_error(step(&mut state, list(&[]))), Refusal::ErrInvalid);
    let _ = step(&mut state, ClientOption::StructuredReply);
    let mut listed = |queries: &[&str]| step(&mut state, list(queries)).0;
    assert_eq!(
        names(&listed(&[])),
        [(0, "base:allocation"), (0, "vaio:dirty")]
    );
    assert_eq!(names(&listed(&["vaio:"])), [(0, "vaio:dirty")]);
    assert_eq!(names(&listed(&["vaio:dirty", "x:y"])), [(0, "vaio:dirty")]);
    assert_eq!(names(&listed(&["vaio"])), []);
}

#[test]
fn chosen_contexts_hold_for_their_export_only() {
    let mut state = Negotiation::new(Tls::Off);
    let set = |export: &str, queries: &[&str]| ClientOption::SetMetaContext(query(export, queries));
    let _ = step(&mut state, ClientOption::StructuredReply);
    let twice = set(EXPORT, &["vaio:dirty", "no:such", "base:", "vaio:dirty"]);
    assert_eq!(names(&step(&mut state, twice).0), [(1, "vaio:dirty")]);
    assert_eq!(
        go(&mut state.clone(), "").contexts,
        [1],
        "the default is the same export"
    );
    assert!(go(&mut state.clone(), "large").contexts.is_empty());
    let refused = step(&mut state, set("nowhere", &["vaio:dirty"]));
    assert_eq!(last_error(refused), Refusal::ErrUnknown);
    assert!(
        go(&mut state, EXPORT).contexts.is_empty(),
        "a refused choice ends the one before"
    );
}

#[test]
fn malformed_and_unknown_options_are_refused_in_sync() {
    let mut state = Negotiation::new(Tls::Off);
    assert_eq!(
        last_error(step(&mut state, ClientOption::Unknown(99))),
        Refusal::ErrUnsup
    );
    let mut broken = |code, error| {
        let mut out = Vec::new();
        let option = Err(error);
        let next = state.step(&offers(), FramedOption { code, option }, &mut out);
        (next, out.get(12..16).map(<[u8]>::to_vec))
    };
    let wire = |refusal: Refusal| Some(refusal.to_wire().to_be_bytes().to_vec());
    let malformed = ProtoError::Malformed { what: "x" };
    let (what, len, max) = ("x", 2, 1);
    let long = ProtoError::TooLong { what, len, max };
    assert_eq!(
        broken(7, malformed),
        (Next::Continue, wire(Refusal::ErrInvalid))
    );
    assert_eq!(broken(7, long), (Next::Continue, wire(Refusal::ErrTooBig)));
    assert_eq!(broken(1, long), (Next::Close, None));
}

#[test]
fn options_at_the_limit_are_answered_and_beyond_close() {
    let mut state = Negotiation::new(Tls::Off);
    for _ in 0..OPTIONS_MAX {
        assert_eq!(step(&mut state, ClientOption::List).1, Next::Continue);
    }
    assert_eq!(step(&mut state, ClientOption::List), (vec![], Next::Close));
}

#[test]
fn refused_connection_is_told_why() {
    let mut state = Negotiation::refusing(Refusal::ErrPolicy, "too many");
    let (replies, next) = step(&mut state, ClientOption::Go(info("", &[])));
    assert_eq!(
        replies,
        [OptionReply::error(Refusal::ErrPolicy, "too many")]
    );
    assert_eq!(next, Next::Close);
}
