//! The crate in ten lines: an org, a value, its own key, the proof that the old one is gone.

use byokv::{KeyMaterial, OrgPolicy, Result, RootKey, Store};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let data = std::env::temp_dir().join(format!("byokv-quickstart-{}", std::process::id()));
    let store = Store::open(&data, RootKey::from_material(KeyMaterial::generate()?))?;
    let acme = store.create_org("acme", OrgPolicy::byok())?;
    acme.put("clusters/prod/token", "s3cret")?;
    let rotation = store.keys().provision("acme", KeyMaterial::generate()?)?;
    println!("{}", rotation.progress());
    println!("{}", rotation.wait()?);
    println!("the value has {} bytes", acme.get("clusters/prod/token")?.map_or(0, |v| v.len()));
    store.close()?;
    println!("the store is in {}; remove it when you have seen enough", data.display());
    Ok(())
}
