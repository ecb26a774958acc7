//! How key material stands in the encoded keyring, which is only ever written sealed.
//!
//! `KeyMaterial` itself has no serde on purpose: nobody outside can write its bytes out through
//! one, or make material that was never checked. What is read here was checked when it came in.

/// For a field of key material.
pub(super) mod material {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use zeroize::Zeroizing;

    use crate::material::KeyMaterial;

    pub(in crate::keyring) fn serialize<S: Serializer>(
        material: &KeyMaterial,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(material.expose_bytes())
    }

    pub(in crate::keyring) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<KeyMaterial, D::Error> {
        let bytes = Zeroizing::new(Vec::<u8>::deserialize(deserializer)?);
        let wrong_length = || D::Error::invalid_length(bytes.len(), &"32 bytes");
        KeyMaterial::from_slice(&bytes).ok_or_else(wrong_length)
    }
}

/// For a field whose key material may be gone.
pub(super) mod optional_material {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::material::KeyMaterial;

    #[derive(Serialize)]
    struct Lent<'a>(#[serde(with = "super::material")] &'a KeyMaterial);

    #[derive(Deserialize)]
    struct Owned(#[serde(with = "super::material")] KeyMaterial);

    pub(in crate::keyring) fn serialize<S: Serializer>(
        material: &Option<KeyMaterial>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        material.as_ref().map(Lent).serialize(serializer)
    }

    pub(in crate::keyring) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<KeyMaterial>, D::Error> {
        Ok(Option::<Owned>::deserialize(deserializer)?.map(|Owned(material)| material))
    }
}
