//! Tokens and sealed keys as bytes and as text, against RFC 9180 and against ourselves.

use proptest::prelude::*;

use super::*;

const TOKEN_LINE: &str = "byokv-import-1.AQMDAwMDAwMDAwMDAwMDAwMEBAQEBAQEBAQEBAQEBAQEAAABjfTcYSATvk_q6vIEx_0zWPycAHIYgdF0J4EoIn7GdPN_f-l7bWFjbWUrQpQS";
const TOKEN_ID: &str = "4087dcd3477e25c692c7b7e119680289";
const SEALED_LINE: &str = "byokv-sealed-1.AQMDAwMDAwMDAwMDAwMDAwNAh9zTR34lxpLHt-EZaAKJrU8K8l6MyQza8RnThSdgjvpkhAozYiQ_6ZmbcA6o2hLQlg4jlUiCxIg4ofOaFaRoi83f4xB5GeNG8iFVz7NgU8hDx6-b5yN8ee-h87DfjUlrIFi6";

fn material(byte: u8) -> KeyMaterial {
    KeyMaterial::take(&mut [byte; 32])
}

fn private() -> KeyMaterial {
    material(7)
}

fn token() -> ImportToken {
    let (store, org) = (OrgId::from_bytes([3; 16]), OrgId::from_bytes([4; 16]));
    ImportToken::new(store, ("acme", org), 1_709_210_100_000, &private()).unwrap()
}

fn key() -> KeyMaterial {
    KeyMaterial::from_base64("+Ds/5rQMkhX9fvEE7vq8Oe5Y5zNk9XUfLWzxQXBy2b0=").unwrap()
}

fn why(error: Error) -> ImportError {
    match error {
        Error::Import(why) => why,
        other => panic!("{other}"),
    }
}

fn hex(text: &str) -> Vec<u8> {
    base16ct::lower::decode_vec(text).unwrap()
}

/// RFC 9180, appendix A.2.1, the first encryption, with our choice of suite and our random
/// source.
#[test]
fn the_suite_is_the_one_of_rfc_9180() {
    let info = hex("4f6465206f6e2061204772656369616e2055726e");
    let aad = hex("436f756e742d30");
    let enc = hex("1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a");
    let ciphertext = hex(
        "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28",
    );
    let (ciphertext, tag) = ciphertext.split_at(ciphertext.len() - TAG_LEN);
    let secret = hex("8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb");
    let secret = private_key(&KeyMaterial::from_slice(&secret).unwrap()).unwrap();
    let seed = hex("909a9b35d3dc4713a5e72a4da274b55d3d3821a37e5d099e74a647db583a904b");

    let mut random = Random { fixed: Some(seed.try_into().unwrap()), ..Random::default() };
    let mut buffer = b"Beauty is truth, truth beauty".to_vec();
    let (encapsulated, sealed_tag) =
        hpke::single_shot_seal_inout_detached_with_rng::<ChaCha20Poly1305, HkdfSha256, Kem>(
            &OpModeS::Base,
            &Kem::sk_to_pk(&secret),
            &info,
            buffer.as_mut_slice().into(),
            &aad,
            &mut random,
        )
        .unwrap();
    assert_eq!(encapsulated.to_bytes()[..], enc);
    assert_eq!((&buffer[..], &sealed_tag.to_bytes()[..]), (ciphertext, tag));

    hpke::single_shot_open_inout_detached::<ChaCha20Poly1305, HkdfSha256, Kem>(
        &OpModeR::Base,
        &secret,
        &encapsulated,
        &info,
        buffer.as_mut_slice().into(),
        &aad,
        &AeadTag::from_bytes(tag).unwrap(),
    )
    .unwrap();
    assert_eq!(buffer, b"Beauty is truth, truth beauty");
}

/// These lines must open for ever: they pin both texts.
#[test]
fn golden_token_and_sealed_key() {
    let token = token();
    assert_eq!(token.to_string(), TOKEN_LINE);
    assert_eq!(TOKEN_LINE.parse::<ImportToken>().unwrap(), token);
    assert_eq!(token.id().to_string(), TOKEN_ID);
    let mut random = Random { fixed: Some([8; 32]), ..Random::default() };
    let sealed = token.seal_with(&key(), &mut random).unwrap();
    assert_eq!(sealed.to_string(), SEALED_LINE);
    let opened = SEALED_LINE.parse::<SealedKey>().unwrap().open(&token, &private()).unwrap();
    assert_eq!(opened.expose_bytes(), key().expose_bytes());
}

#[test]
fn each_sealing_differs() {
    let (one, two) = (token().seal(&key()).unwrap(), token().seal(&key()).unwrap());
    assert_ne!(one, two);
    for sealed in [one, two] {
        assert_eq!(sealed.open(&token(), &private()).unwrap().expose_bytes(), key().expose_bytes());
    }
}

/// Each part of the token is bound, also those that the sealed key does not repeat.
#[test]
fn a_sealed_key_opens_under_its_whole_token_only() {
    let sealed = token().seal(&key()).unwrap();
    let other = OrgId::from_bytes([5; 16]);
    let changes: [fn(&mut ImportToken, OrgId); 5] = [
        |token, other| token.store = other,
        |token, other| token.org = other,
        |token, _| token.expires += 1,
        |token, _| token.public[0] ^= 1,
        |token, _| token.name.push('x'),
    ];
    for change in changes {
        let mut token = token();
        change(&mut token, other);
        assert_ne!(token.id(), self::token().id());
        let refused = why(sealed.open(&token, &private()).unwrap_err());
        assert_eq!(refused, ImportError::Altered { token: token.id() });
        // And the other way round: sealed under an altered token, opened under ours.
        if token.public == self::token().public {
            let sealed = token.seal(&key()).unwrap();
            assert!(sealed.open(&self::token(), &private()).is_err());
        }
    }
    assert!(sealed.open(&token(), &material(8)).is_err());
}

#[test]
fn a_typo_is_told_from_an_alteration() {
    let malformed = |text: &str| match why(text.parse::<SealedKey>().unwrap_err()) {
        ImportError::Malformed { what: "sealed key", why } => why,
        other => panic!("{text}: {other}"),
    };
    let cut = &SEALED_LINE[..SEALED_LINE.len() - 8];
    assert!(malformed(cut).contains("checksum"));
    assert!(malformed(&SEALED_LINE[..40]).contains("cut short"));
    assert!(malformed(&SEALED_LINE.replacen('w', "x", 1)).contains("checksum"));
    assert!(malformed(&SEALED_LINE.replacen('w', "!", 1)).contains("mistyped"));
    assert!(malformed("").contains("begin"));
    assert!(malformed(SealedKey::PREFIX).contains("checksum"));
    assert!(malformed(TOKEN_LINE).contains("import token"));
    assert!(malformed(&"x".repeat(5000)).contains("too long"));
    let what = SealedKey::WHAT;
    let with = |bytes: &[u8]| text(SealedKey::PREFIX, what, bytes);
    let mut encoded = token().seal(&key()).unwrap().encode();
    assert!(malformed(&with(&[&encoded[..], &[0]].concat())).contains("length"));
    assert!(malformed(&with(&encoded[..90])).contains("cut"));
    encoded[40] ^= 1;
    let altered = with(&encoded).parse::<SealedKey>().unwrap().open(&token(), &private());
    assert!(matches!(why(altered.unwrap_err()), ImportError::Altered { .. }));
    encoded[0] = 2;
    assert!(malformed(&with(&encoded)).contains("format"));
}

#[test]
fn tokens_with_a_name_that_is_none_are_refused() {
    for name in ["", "a\u{1b}[2J", &"x".repeat(129)] {
        let token = ImportToken { name: name.to_owned(), ..token() };
        let refused = why(token.to_string().parse::<ImportToken>().unwrap_err());
        assert!(matches!(refused, ImportError::Malformed { .. }), "{name:?}");
    }
    let token = ImportToken { public: [0; 32], ..token() };
    let read: ImportToken = token.to_string().parse().unwrap();
    let refused = why(read.seal(&key()).unwrap_err());
    assert!(refused.to_string().contains("public key"), "a point of small order");
}

#[test]
fn mail_programs_may_break_the_line() {
    let broken: Vec<_> = SEALED_LINE.as_bytes().chunks(40).map(str::from_utf8).collect();
    let broken: Vec<_> = broken.into_iter().map(Result::unwrap).collect();
    let text = format!("  {}\r\n", broken.join("\r\n"));
    assert_eq!(text.parse::<SealedKey>().unwrap().to_string(), SEALED_LINE);
}

#[test]
fn a_random_source_that_fails_seals_nothing() {
    let mut random = Random { failure: Some("gone".to_owned()), ..Random::default() };
    // `seal` looks at the failure after the fact, so nothing leaves that was made without.
    token().seal_with(&key(), &mut random).unwrap();
    assert_eq!(random.failure.as_deref(), Some("gone"));
}

proptest! {
    #[test]
    fn texts_never_panic(text in "(byokv-(import|sealed)-1\\.)?[ -~]{0,300}") {
        let _ = text.parse::<ImportToken>();
        let _ = text.parse::<SealedKey>();
    }

    /// Past the checksum too.
    #[test]
    fn bytes_decode_to_themselves_or_not_at_all(bytes in proptest::collection::vec(any::<u8>(), 0..250), first in 0..3u8) {
        let bytes = [&[first][..], &bytes].concat();
        if let Ok(token) = ImportToken::decode(&bytes) {
            prop_assert_eq!(token.encode(), &bytes[..]);
        }
        if let Ok(sealed) = SealedKey::decode(&bytes) {
            prop_assert_eq!(sealed.encode(), &bytes[..]);
            prop_assert!(sealed.open(&token(), &private()).is_err());
        }
    }

    /// Any altered byte, also with a checksum that fits.
    #[test]
    fn an_altered_sealed_key_does_not_open(at in 0..113usize, flip in 1..=255u8) {
        let mut bytes = SEALED_LINE.parse::<SealedKey>().unwrap().encode();
        prop_assert_eq!(bytes.len(), 113);
        bytes[at] ^= flip;
        if let Ok(sealed) = SealedKey::decode(&bytes) {
            prop_assert!(sealed.open(&token(), &private()).is_err());
        }
    }
}
