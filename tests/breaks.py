#!/usr/bin/env python3
"""Breaks each invariant of docs/design.md on purpose, in a copy of the tree, and shows that a
test fails. `just breaks`; with words, only the breaks whose title holds one of them; with
`--check`, only whether each text to break still stands in its file."""

import os
import shutil
import signal
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COPY = os.path.join(ROOT, "target", "breaks")

# title, file, old text, new text, arguments of `cargo test`; "loom" and a test for loom's model
BREAKS = [
    ("7 a parallel scan leaves out what does not open", "src/org/parallel.rs",
     "if place.send(opened.collect()).is_err() {",
     "if place.send(opened.filter(|record: &Result<Record>| record.is_ok()).collect()).is_err() {",
     "--test scan an_error"),
    ("XAES by aws-lc takes K1 undoubled", "src/envelope/suite/aws.rs",
     "            k1[i] = (k1[i] << 1) | carry;\n", "            k1[i] |= carry & 0;\n",
     "--lib --features=aws-lc suite"),
    ("only the memory of now is locked", "src/process.rs",
     "MlockAllFlags::CURRENT | MlockAllFlags::FUTURE |", "MlockAllFlags::CURRENT |",
     "--test process memory"),
    ("core dumps are still piped", "src/process.rs",
     "if limit_dumps(1).is_err() {", "if limit_dumps(0).is_err() {", "--test process core"),
    ("core dumps are piped where the limit is 0 already", "src/process.rs",
     "        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;\n", "", "--test process core"),
    ("a batch that failed stays by half", "src/storage/sled/write.rs",
     "                undo(database, space, &changes);\n", "", "--lib after_a_write_that"),
    ("a batch that failed and is whole is taken back", "src/storage/sled/write.rs",
     "written.is_ok() || are_made(database, space, &changes)", "written.is_ok()",
     "--lib a_write_that_failed"),
    ("what could not be taken back passes for deleted", "src/storage/sled/write.rs",
     "            database.files().note_unknown(space, key);\n", "",
     "--lib what_cannot_be"),
    ("a walk passes over what could not be taken back", "src/storage/sled/database.rs",
     "self.files().check_known(None).map(|()| read)", "Ok(read)", "--lib what_cannot_be"),
    ("batches are let in while the keeper waits for them", "src/storage/sled/flush.rs",
     "        state.flushing = true;\n", "", "--lib batches_in_a_row"),
    ("the first flush is given up by the clock", "src/storage/sled/database.rs",
     "if reached != seen.0 => seen = (reached, Instant::now()),",
     "if reached != seen.0 => seen.0 = reached,", "--lib who_waits"),
    ("batches in a row keep the keeper from noting", "src/storage/sled/pins.rs",
     "let waits = self.skipped >= Self::MOST_SKIPPED;", "let waits = false;",
     "--lib batches_in_a_row"),
    ("a write that failed may have been made unnoticed", "src/storage/sled/write.rs",
     "holds(database, space, &key, sought.as_deref()).unwrap_or(false)", "false",
     "--lib a_write_that_failed"),
    ("11 once a write has failed nothing is missed", "src/storage/sled/mod.rs",
     "Some(false) => return database.check_writable().map(|()| false),",
     "Some(false) => return Ok(database.check_writable().is_err()),",
     "--lib after_a_write_that"),
    ("writes go on behind one that failed", "src/storage/sled/files.rs",
     "        self.stop_writing(Error::WriteFailed { why: why.clone() });\n", "",
     "--lib after_a_write_that"),
    ("a batch waits for a flush that never ends", "src/storage/sled/flush.rs",
     "            files.check_writable()?;\n", "", "--lib a_batch_waits"),
    ("the log is not cut off where a batch failed", "src/storage/sled/log.rs",
     "if message.kind == CANCELED && message.page == BATCHES {", "if message.kind > LAST_KIND {",
     "--lib the_log_is_cut_off_where"),
    ("half of a failed batch is found by who comes later", "src/storage/sled/log.rs",
     "if message.kind == CANCELED && message.page == BATCHES {", "if message.kind > LAST_KIND {",
     "--lib of_a_batch_that_failed"),
    ("the log is noted beyond where a batch may fail", "src/storage/sled/pins.rs",
     "(before_batches / size == segment).then_some(", "(before_batches <= reached).then_some(",
     "--lib nothing_is_noted_beyond"),
    ("writes go on behind a batch that failed", "src/storage/sled/database.rs",
     "written.inspect_err(|error| self.files().note_failed(error))", "written",
     "--lib after_a_write_that"),
    ("a held key keeps the newest from rotating", "src/keyring/mod.rs",
     "v.state == KeyState::Retired || v.held.is_some();", "v.state == KeyState::Retired;",
     "--test keylife keys_are_due_beside"),
    ("nobody learns of a key that is due while a rotation waits", "src/rotation/due.rs",
     "(newest.due.is_none() || rotates(org))", "rotates(org)", "--test keylife keys_are_due_beside"),
    ("1 Debug of material prints its bytes", "src/material.rs",
     'write!(f, "KeyMaterial({})", self.fingerprint())', 'write!(f, "KeyMaterial({:?})", self.0)',
     "--test secrets"),
    ("1 an event holds the value", "src/engine/mod.rs",
     "        let keys = org.gate.enter();\n        let places = org.hidden",
     "        let keys = org.gate.enter();\n        tracing::trace!(value = %String::from_utf8_lossy(value.unwrap_or_default()));\n"
     "        let places = org.hidden",
     "--test secrets"),
    ("1 the value is stored in clear too", "src/engine/mod.rs",
     "        self.replace(org, name, places, envelope)?;",
     "        self.storage.put(Space::System, name, value.map(<[u8]>::to_vec))?;\n"
     "        self.replace(org, name, places, envelope)?;",
     "--test invariants raw_files"),
    ("2 the version of one snapshot, the key of another", "src/engine/mod.rs",
     "org: self.org, version: self.active }\n",
     "org: self.org, version: self.slots[0].version }\n",
     "--test invariants"),
    ("3 values under a key that is not on disk yet", "src/engine/change.rs",
     "        match ring.file.save(root.as_ref().unwrap_or(&ring.root), &next) {",
     "        ring.keyring = next.duplicate();\n        drop(ring);\n"
     "        self.orgs().iter().for_each(|org| self.publish(org));\n"
     "        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);\n"
     "        match ring.file.save(root.as_ref().unwrap_or(&ring.root), &next) {",
     "--test order a_key"),
    ("4 a writer leaves the gate before its insert", "src/engine/mod.rs",
     '        failpoint::reach("put.sealed", &org.name);\n'
     "        self.replace(org, name, places, envelope)?;",
     "        drop(keys);\n        let keys = ();\n"
     '        failpoint::reach("put.sealed", &org.name);\n'
     "        self.replace(org, name, places, envelope)?;",
     "--test invariants a_writer"),
    ("4 replacing waits for nobody", "src/gate.rs",
     "        *self.writers.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&next);\n"
     "        Drained(next)",
     "        Drained(next)",
     "--lib gate"),
    ("5 the rewrite inserts instead of swapping", "src/engine/names.rs",
     "let swapped =\n                self.storage.compare_and_swap(Space::Records, key, Some(old), Some(envelope))?;",
     "self.storage.put(Space::Records, key, Some(envelope))?;\n            let swapped = true;",
     "--test invariants a_rewrite"),
    ("5 a blinded name is moved whatever lies there now", "src/engine/names.rs",
     "if self.storage.get(Space::Records, key)?.as_ref() != Some(old) {", "if false {",
     "--test moving a_rewrite"),
    ("5 a write leaves the old place as it is", "src/engine/names.rs",
     "if self.storage.get(Space::Records, &key)?.is_some() {", "if false {",
     "--test moving writes_during"),
    ("5 writers of blinded names take no turns", "src/engine/names.rs",
     "let mut wanted: Vec<_> = names.into_iter().map(stripe).collect();",
     "let mut wanted: Vec<_> = names.into_iter().map(stripe).take(0).collect();",
     "BYOKV_TORTURE=20 --test moving writers_and"),
    ("5 an old place wins over a newer one", "src/engine/names.rs",
     "if self.storage.get(Space::Records, place)?.is_some() {", "if false {",
     "--test blinded an_old_place"),
    ("6 the new place is looked at once", "src/engine/names.rs",
     "if places.older.is_empty() { Ok(None) } else { look(&places.newest) }", "Ok(None)",
     "--test moving a_write_that_passes"),
    ("6 a moved name is called absent", "src/engine/names.rs",
     "|found| matches!(found, Ok(Some(_)))", "Result::is_ok",
     "--test moving a_reader_with"),
    ("6 a scan walks the new places first", "src/engine/names.rs",
     "self.slots.iter().filter(lives).map(part).collect()", "self.slots.iter().rev().filter(lives).map(part).collect()",
     "--test moving scans_during"),
    ("8 the count asks no name", "src/observe.rs",
     " || self.by_name_version.contains_key(&version)", "",
     "--lib retire"),
    ("1 a blinded name is stored in clear", "src/envelope/name.rs",
     "tag.copy_from_slice(&made);", "tag.copy_from_slice(&made);\n            key.truncate(at + LEN_LEN + TAG_LEN);\n            key.extend_from_slice(segment);",
     "--test blinded raw_files"),
    ("equal segments look equal everywhere", "src/envelope/name.rs",
     "encrypt_inout_detached([AD_LABEL, parent]", "encrypt_inout_detached([AD_LABEL, &parent[..START_LEN]]",
     "--lib equal_segments"),
    ("6 nothing is read again", "src/gate.rs",
     "if settled(&outcome) || self.is_current(&snapshot) {",
     "let _ = settled(&outcome) || self.is_current(&snapshot);\n            if true {",
     "--test invariants a_reader"),
    ("7 unreadable is skipped", "src/rotation/pass.rs",
     "if self.tally.unreadable > 0 {", "if false {",
     "--test invariants a_damaged"),
    ("7 a current header is believed unopened", "src/rotation/pass.rs",
     "keys.open(name, &stored).map(|_| None)", "Ok(None)",
     "--test damage a_header"),
    ("8 the count is not asked", "src/rotation/retire.rs",
     "!census.names_version(*version);", "census.names_version(*version) || version.get() > 0;",
     "--lib retire"),
    ("8 a count that lost a part clears", "src/rotation/count.rs",
     "if !self.walked.are(self.all) {", "if false {",
     "--lib a_count_that"),
    ("8 a record at a cut belongs to neither side", "src/rotation/count.rs",
     "Bound::Excluded(key) => Edge::After(key),", "Bound::Excluded(key) => Edge::Before(key),",
     "--lib stretches_that"),
    ("a fault is told while threads are at it", "src/rotation/spans.rs",
     "self.fault.take_if(|_| waited)", "self.fault.take_if(|_| true)",
     "--lib a_fault_is_told"),
    ("8 what was counted before a fault counts", "src/rotation/count.rs",
     "if !self.walk.back(&mut done) || !is_whole {", "if !self.walk.back(&mut done) {",
     "--lib a_fault_is_told"),
    ("7 a chunk of a walk that was given up counts in the next", "src/rotation/spans.rs",
     "        if done.walk != self.number {", "        if false {",
     "--lib a_chunk_of_another"),
    ("8 a malformed header clears", "src/rotation/retire.rs",
     "if census.malformed > 0 {", "if false {",
     "--lib retire"),
    ("8 retired before the rewrite is durable", "src/rotation/retire.rs",
     "        engine.sync()?;\n        Ok(Synced(self))", "        let _ = engine;\n        Ok(Synced(self))",
     "--test order the_old_key"),
    ("9 nothing goes on at open", "src/rotation/mod.rs",
     "            rotations.wake(&org);\n", "",
     "--test crash"),
    ("9 what is owed is not paid at open", "src/engine/opening.rs",
     "        engine.pay_outbox(&engine.ring().keyring)?;\n", "",
     "--test crash"),
    ("10 material may come twice", "src/keyring/mod.rs",
     "if taken || lists.iter().any(|list| list.contains(&fingerprint)) {",
     "if taken && lists.is_empty() {",
     "--test invariants material"),
    ("10 an old keyring is taken", "src/engine/opening.rs",
     "if keyring.generation < generation {", "if false {",
     "--test invariants parts"),
    ("11 an old database is taken", "src/engine/opening.rs",
     "if database.syncs < known {", "if false {",
     "--test invariants parts_from"),
    ("11 the mark runs ahead", "src/engine/durability.rs",
     '        failpoint::reach("sync.counted", "");\n',
     '        state.mark.advance(next)?;\n        failpoint::reach("sync.counted", "");\n',
     "--test order the_mark"),
    ("12 a wrong root key is called damage", "src/keyring/root.rs",
     "    if expected != given {\n", "    if false {\n",
     "--test invariants a_wrong"),
    ("12 suspended is called damage", "src/engine/orgs.rs",
     "            (None, _) => Err(self.suspended(version)),",
     '            (None, _) => Err(self.damaged(name, "no key")),',
     "--test invariants suspended"),
    ("13 orgs share a prefix", "src/engine/orgs.rs",
     "[self.id.as_bytes(), name].concat()", "[&[0; 16][..], name].concat()",
     "--test api scans"),
    ("9 an erasure is not gone on with", "src/rotation/mod.rs",
     "            rotations.erase(&org);\n", "",
     "--test keylife an_erasure"),
    ("9 old databases are left lying", "src/engine/opening.rs",
     "Err(error) = Self::erase_leftovers(dir, &database) {", "Err(error) = Ok::<(), Error>(()) {",
     "--test residue a_removal"),
    ("5 a copy forgets what was written meanwhile", "src/storage/sled/copy.rs",
     "        self.copy_noted()?;\n        // What it holds",
     "        // What it holds",
     "--lib a_copy_takes_over"),
    ("5 a batch asks too early whether it is copied", "src/storage/sled/write.rs",
     "        let _allowed = self.writes.read().unwrap_or_else(PoisonError::into_inner);\n"
     "        if self.ended.load(Ordering::Acquire) {\n            return Err(Error::Closed);\n        }\n"
     "        let database = self.current();\n        database.check_writable()?;\n"
     "        let copying = self.copying.load(Ordering::Acquire);\n",
     "        let copying = self.copying.load(Ordering::Acquire);\n"
     "        let _allowed = self.writes.read().unwrap_or_else(PoisonError::into_inner);\n"
     "        let database = self.current();\n        database.check_writable()?;\n",
     "--lib a_batch_that_meets"),
    ("7 a hold is never broken", "src/rotation/hold.rs",
     "let broken = times > 0;", "let broken = times > u64::MAX - 1;",
     "--test keylife a_record"),
    ("a lock that was tried is left to a child", "src/storage/sled/border.rs",
     "log.unlock().map_err(TryLockError::Error)", "Ok(())",
     "--lib what_was_tried"),
    ("a blob is synced once", "src/storage/sled/files.rs",
     ".filter(|(len, _)| *len == meta.len());", ";",
     "--lib a_blob"),
    ("a pass is made before what it follows is retired", "src/rotation/task.rs",
     "            self.start_pass();\n            return Ok(());\n        }\n        self.finish(engine, records)", "            return Ok(());\n        }\n        self.finish(engine, records)",
     "--test rotation a_rotation_that_is"),
    ("one erased org holds up all commands", "src/rotation/worker.rs",
     "if turns == 0 && went {", "if false {",
     "--test rotation commands_are"),
    ("a forked child draws its parent's nonces", "src/envelope/nonce/pool.rs",
     "libc::MAP_SHARED |", "libc::MAP_PRIVATE |", "--lib nonces"),
    ("a count of draws that goes back repeats nonces", "src/envelope/nonce/pool.rs",
     "(self.fresh..Self::PLACES)", "(0..Self::PLACES)", "--lib nonce"),
    ("a certificate is believed unread", "src/audit/certificate.rs",
     "if !key.mac_is(LABEL, &sealed::encode(&body), &self.authenticator) {", "if key.mac(LABEL, &[]).is_empty() {",
     "--test damage a_certificate"),
    ("a backup forgets what was written meanwhile", "src/store/backup.rs",
     "            self.collect_notes();\n            if orgs", "            if orgs",
     "--test backup what_returned"),
    ("a backup's moment lets writers go on", "src/engine/standstill.rs",
     "let _held: Vec<_> = orgs.iter().map(|org| org.gate.hold()).collect();",
     "orgs.iter().for_each(|org| drop(org.gate.hold()));",
     "--lib standstill"),
    ("10 a backup key is not noted", "src/keyring/restore.rs",
     "        self.backup_keys.push(key);\n        Ok(true)", "        Ok(true)",
     "--test backup no_key"),
    ("10 the history of a restored org does not count", "src/engine/restore.rs",
     "if past.contains(&fingerprint) {", "if past.is_empty() {",
     "--test backup no_key"),
    ("10 a version number is issued again", "src/keyring/restore.rs",
     "newest.max(history.newest())", "newest.min(history.newest())",
     "--test backup an_org_that"),
    ("9 half restored orgs are seen", "src/keyring/mod.rs",
     "self.erasure.is_none() && !self.is_restoring", "self.erasure.is_none()",
     "--test restore nobody_sees"),
    ("9 half restored orgs are kept", "src/engine/opening.rs",
     "Err(error) = engine.discard_unfinished_restores() {", "Err(error) = Ok::<(), Error>(()) {",
     "--test restore a_restore_killed"),
    ("9 restored orgs are seen before they are durable", "src/engine/restore.rs",
     "            self.sync()?;\n            failpoint::reach(\"restore.synced\", \"\");",
     "            failpoint::reach(\"restore.synced\", \"\");",
     "--test restore a_restore_killed"),
    ("a backup's end may be anywhere", "src/backup/stream.rs",
     "        if is_last && fill(&mut self.from, &mut [0])? > 0 {", "        if false {",
     "--lib backup"),
    ("a durable write only flushes later", "src/org.rs",
     "if self.durable { self.engine.sync() } else { Ok(()) }", "Ok(())",
     "--test durability what_was"),
    ("11 the mark stays behind after a crash", "src/engine/opening.rs",
     "        if behind.is_none() && held.unwrap_or_default().syncs > marked.unwrap_or_default().syncs {", "        if false {",
     "--test points killed"),
    ("9 a change of keys is acknowledged before it is on disk", "src/sealed/file.rs",
     "        exchange(&new, path).map_err(|e| Error::io(during(\"exchanging\"), e))?;",
     "        let (new, path) = (new.clone(), path.to_owned());\n"
     "        std::thread::spawn(move || {\n"
     "            std::thread::park_timeout(std::time::Duration::from_millis(30));\n"
     "            exchange(&new, &path)\n"
     "        });",
     "--test kill what"),
    ("the digest is not asked at opening", "src/engine/opening.rs",
     "(!was_whole).then", "(was_whole && false).then",
     "--test damaged a_record_taken_away_after"),
    ("what was accepted stays in pages of different ages", "src/engine/opening.rs",
     "            engine.erase_residue()?;", "",
     "--test damaged a_page"),
    ("the digest forgets deletions", "src/storage/sled/write.rs",
     ".note_deletion(database, deletion, &[old])",
     ".note_deletion(database, deletion, &[])",
     "--test kill what"),
    ("the digest forgets what a write replaced", "src/storage/sled/digest.rs",
     "        REPLACED.set(Some(print));", "        REPLACED.set(Some(0));",
     "--test kill what"),
    ("a write does not say what it replaced", "src/storage/sled/digest.rs",
     "            *place = replaced.to_be_bytes();", "            *place = (replaced & 0).to_be_bytes();",
     "--test kill what"),
    ("the log is cut off before sled's snapshot", "src/storage/sled/tail.rs",
     "usize::try_from(snapshot - at).unwrap_or(0)", "usize::try_from((snapshot - at) & 0).unwrap_or(0)",
     "--lib the_log_is_not_cut"),
    ("torn settings are made anew over a database", "src/storage/sled/settings.rs",
     "Ok(fs::read(log)?.iter().any(|&byte| byte != 0))", "Ok(false)",
     "--lib settings"),
    ("the settings are left to sled", "src/storage/sled/settings.rs",
     "    fs::create_dir_all(dir)?;\n", "    return Ok(Some(fresh));\n    fs::create_dir_all(dir)?;\n",
     "--lib settings"),
    ("large pages whose files were exchanged are believed", "src/storage/sled/database.rs",
     "sums::misplaced(dir).map_err(preparing)? {", "None::<std::path::PathBuf> {",
     "--test damaged large_pages"),
    ("notes of large pages outlive their places", "src/storage/sled/tail.rs",
     "    sums::forget(dir)?;\n", "",
     "--lib before_recovery"),
    ("keys of a batch are not locked", "src/storage/sled/write.rs",
     "numbers.iter().map(|&number| digest.lock(number)).collect();",
     "numbers.iter().take(0).map(|&number| digest.lock(number)).collect();",
     "--lib storage"),
    ("a store at rest holds up the collector", "src/storage/sled/keeper.rs",
     "            if self.files.check_writable().is_ok() {\n                written.store",
     "            if self.files.check_writable().is_ok() && written.load(Ordering::Relaxed) > 0 {\n"
     "                written.store",
     "--lib keeper"),
    ("the digest takes what a crash left for what was there", "src/storage/sled/digest.rs",
     "(written, replaced) if written > epoch => replaced,", "(written, replaced) if written > epoch.max(u64::MAX - 1) => replaced,",
     "--test kill what"),
    ("the digest is summed while writes are under way", "src/storage/sled/write.rs",
     "        let _all = self.writes.write().unwrap_or_else(PoisonError::into_inner);\n"
     "        if self.ended",
     "        if self.ended",
     "--test kill what"),
    ("a word before the report of a hold is passed over", "src/rotation/mod.rs",
     ".filter(|_| report.woken == woken)", "",
     "--test keylife a_word"),
    ("each durable writer syncs alone", "src/engine/durability.rs",
     "        self.durability.rounds.run(|| self.sync_round())", "        self.sync_round()",
     "--test durability durable_writers"),
    ("5 linear: the rewrite inserts instead of swapping", "src/engine/names.rs",
     "let swapped =\n                self.storage.compare_and_swap(Space::Records, key, Some(old), Some(envelope))?;",
     "self.storage.put(Space::Records, key, Some(envelope))?;\n            let swapped = true;",
     "--test linear one_name"),
    ("4 schedules: replacing waits for nobody", "src/gate.rs",
     "        *self.writers.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&next);\n"
     "        Drained(next)",
     "        Drained(next)",
     "--test schedules"),
    ("6 schedules: nothing is read again", "src/gate.rs",
     "if settled(&outcome) || self.is_current(&snapshot) {",
     "let _ = settled(&outcome) || self.is_current(&snapshot);\n            if true {",
     "BYOKV_TORTURE=5 --test schedules"),
    ("model: a batch forgets its last write", "src/org/batch.rs",
     "let sealed = self.writes.iter().map(", "let sealed = self.writes.iter().take(1).map(",
     "--test model every"),
    ("model: a suspended key goes on sealing", "src/engine/change.rs",
     "        self.publish(org);\n        tracing::warn!(org = %org.name, ?versions, \"key suspended\");",
     "        tracing::warn!(org = %org.name, ?versions, \"key suspended\");",
     "BYOKV_TORTURE=10 --test model every"),
    ("a policy's end of a hold is not noticed", "src/admin.rs",
     "        // What is held may have to go sooner now, or later.\n        if self.rotations.is_rotating(&state) {",
     "        if false {",
     "--test keylife a_held_key_goes"),
    ("loom 4 a writer leaves the gate before its insert", "src/gate/model.rs",
     "        self.record.swap(envelope, SeqCst);\n        drop(keys);",
     "        drop(keys);\n        self.record.swap(envelope, SeqCst);",
     "loom no_write"),
    ("loom 4 nobody waits for the writers inside", "src/gate.rs",
     "        Entered(self.writers.read().unwrap_or_else(PoisonError::into_inner))",
     "        let inside = Arc::clone(&self.writers.read().unwrap_or_else(PoisonError::into_inner));\n"
     "        Entered(Box::leak(Box::new(Lock::new(inside))).read().unwrap_or_else(PoisonError::into_inner))",
     "loom no_write"),
    ("loom 8 a pass begins before the writers have drained", "src/gate/model.rs",
     "let drained = self.gate.drained();", "let drained = Drained(self.gate.snapshot());",
     "loom a_version"),
    ("loom 8 the drained are noted before they have drained", "src/gate.rs",
     "        let drained = Arc::new(self.replace(next));\n"
     "        *self.drained.lock().unwrap_or_else(PoisonError::into_inner) = drained;",
     "        let next = Arc::new(next);\n"
     "        *self.drained.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(Drained(Arc::clone(&next)));\n"
     "        self.readers.store(Arc::clone(&next));\n"
     "        *self.writers.write().unwrap_or_else(PoisonError::into_inner) = next;",
     "loom a_version"),
    ("loom 8 retired without a pass and a count", "src/gate/model.rs",
     "        self.rewrite();\n        let counted = 1 << (self.fetch() >> 16);", "        let counted = 0;",
     "loom a_reader_outlives"),
    ("loom 5 the rewrite inserts instead of swapping", "src/gate/model.rs",
     "if self.record.compare_exchange(stored, envelope, SeqCst, SeqCst).is_ok() {",
     "if self.record.swap(envelope, SeqCst) > 0 {",
     "loom a_version"),
    ("loom 6 writers get the new version before readers", "src/gate.rs",
     "        self.readers.store(Arc::clone(&next));\n"
     "        *self.writers.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&next);\n",
     "        *self.writers.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&next);\n"
     "        self.readers.store(Arc::clone(&next));\n",
     "loom a_reader_meets"),
    ("loom 6 nothing is read again", "src/gate.rs",
     "if settled(&outcome) || self.is_current(&snapshot) {",
     "let _ = settled(&outcome) || self.is_current(&snapshot);\n            if true {",
     "loom a_reader_outlives"),
    ("loom 6 the snapshot is taken after the bytes", "src/gate/model.rs",
     "self.gate.read(|keys| keys.open(self.fetch()))",
     "{ let stored = self.fetch(); self.gate.read(|keys| keys.open(stored)) }",
     "loom a_reader_outlives"),
    ("loom the keyring is looked at before it is one's turn", "src/gate.rs",
     "        let _one_at_a_time = self.renewing.lock().unwrap_or_else(PoisonError::into_inner);\n"
     "        let Some(next) = newest(&self.snapshot()) else { return false };\n",
     "        let Some(next) = newest(&self.snapshot()) else { return false };\n"
     "        let _one_at_a_time = self.renewing.lock().unwrap_or_else(PoisonError::into_inner);\n",
     "loom the_newest"),
    ("power cut: the log is not synced", "src/storage/sled/files.rs",
     "        self.log.sync_data().map_err(|e| self.refused(&self.dir.join(\"db\"), &e))",
     "        Ok(())",
     "--test power a_power_cut"),
    ("power cut: space is used again at once", "src/storage/sled/pins.rs",
     "        self.held = Some(pinned);",
     "        self.held = None;\n        drop(pinned);",
     "--test power a_power_cut"),
    ("power cut: what is noted is more than what was synced", "src/storage/sled/pins.rs",
     "(before_batches / size == segment).then_some(segment * size)",
     "(before_batches / size == segment).then_some((segment + 2) * size)",
     "--test power a_power_cut"),
    ("a key is not locked while it is read and written", "src/storage/sled/write.rs",
     "            let _locked = digest.lock(number);\n", "",
     "--lib storage"),
    ("power cut: the log is not cut off where it is not whole", "src/storage/sled/tail.rs",
     "    if let Some(from) = durable.noted {",
     "    if let Some(from) = durable.noted.filter(|_| false) {",
     "BYOKV_TORTURE=1 --test power a_power_cut"),
    ("power cut: what was killed is not synced before sled opens it", "src/storage/sled/tail.rs",
     "    sync_all(dir)?;\n    sums",
     "    sums",
     "BYOKV_TORTURE=1 --test power a_power_cut"),
    ("full disk: sled finds out by itself", "src/storage/sled/files.rs",
     "        if free < reserve + bytes {",
     "        if free < reserve + bytes && bytes == u64::MAX {",
     "--test faults a_full_disk"),
    ("5 half of a span that is cut is lost", "src/rotation/spans.rs",
     "                        self.idle.push_back((Bound::Included(at), to));\n", "",
     "--lib spans"),
    ("records are walked where others still move them to", "src/rotation/spans.rs",
     "if self.idle.is_empty() && self.out == 0 {", "if self.idle.is_empty() {",
     "--lib spans"),
    ("what a chunk came to does not count", "src/rotation/throttle.rs",
     "if let Some(more) = rest.checked_sub(charged).filter(|more| !more.is_zero()) {",
     "if let Some(more) = rest.checked_sub(charged).filter(|_| false) {",
     "--lib throttle"),
    ("one slow window is enough to go slower", "src/rotation/governor.rs",
     "if slow > may_be / periods.min(1.0) {", "if slow > may_be {",
     "--lib governor"),
    ("the governor waits for the end of the second", "src/rotation/governor.rs",
     "if slow > may_be / periods.min(1.0) {", "if slow > may_be && periods >= 1.0 {",
     "--lib governor"),
    ("what is overdrawn is not made up for", "src/rotation/governor.rs",
     "let by = if self.overdrawn > 0.0 { 1.0 } else {", "let by = if false { 1.0 } else {",
     "--lib governor"),
    ("who waits is taken for nobody", "src/rotation/governor.rs",
     "if taken.under_way == 0 {", "if true {",
     "--lib governor"),
    ("who is kept waiting is not counted", "src/engine/latency.rs",
     "while waited >= interval {", "while false {",
     "--lib latency"),
    ("who calls again at once is kept waiting", "src/engine/latency.rs",
     "let mostly_idle = pace.busy < elapsed / 2;", "let mostly_idle = true;",
     "--lib latency"),
    ("the rotation's threads compete", "src/rotation/worker.rs",
     "                stand_back(niceness);\n", "",
     "--test governor only_the"),
    ("an erased org's late record is left", "src/rotation/erase.rs",
     "if HeaderCount::run(engine, org)?.total() > 0 {", "if false {",
     "--lib erase"),
    ("nobody nudges the first flush", "src/storage/sled/database.rs",
     "Err(RecvTimeoutError::Timeout) => match nudge() {",
     "Err(RecvTimeoutError::Timeout) => match if longest.is_zero() { nudge() } else { Ok(0) } {",
     "--lib who_waits"),
    ("the first flush is waited for without a bound", "src/storage/sled/database.rs",
     "while seen.1.elapsed() < longest {", "while longest > Duration::ZERO {",
     "--lib nobody_waits_for_ever_for"),
    ("a store that a starting child shares is in use", "src/engine/opening.rs",
     "if pid != Some(std::process::id()) || start.elapsed() > LONGEST {", "if true {",
     "--test api a_store_is"),
    ("a store waits for ever for sled to close", "src/storage/sled/keeper.rs",
     "        if log() == before {\n",
     "        if false {\n",
     "--test closing"),
    ("a noted deletion counts before it is made", "src/storage/sled/digest.rs",
     "        deletion.amount = amount;\n        Ok(())",
     "        deletion.amount = amount;\n        deletion.made();\n        deletion.amount = 0;\n        Ok(())",
     "--lib storage"),
    ("sled is closed unguarded", "src/storage/sled/keeper.rs",
     "            close(&files, opened);\n",
     "            drop(opened);\n",
     "--lib keeper"),
]


def check():
    """Each text to break stands in its file, once: quick, so that CI can ask it."""
    gone = []
    for title, path, old, _, _ in BREAKS:
        with open(os.path.join(ROOT, path)) as file:
            if file.read().count(old) != 1:
                gone.append(title)
    for title in gone:
        print(f"the text to break is not there once: {title}")
    print(f"{len(BREAKS) - len(gone)} of {len(BREAKS)} texts stand")
    sys.exit(1 if gone else 0)


def main():
    wanted = sys.argv[1:]
    if wanted == ["--check"]:
        return check()
    breaks = [b for b in BREAKS if not wanted or any(word in b[0] for word in wanted)]
    os.makedirs(COPY, exist_ok=True)
    for part in ["src", "tests", "examples", "benches"]:
        shutil.rmtree(os.path.join(COPY, part), ignore_errors=True)
        shutil.copytree(os.path.join(ROOT, part), os.path.join(COPY, part))
    for part in ["Cargo.toml", "Cargo.lock", "README.md"]:
        shutil.copy(os.path.join(ROOT, part), os.path.join(COPY, part))
    unseen = []
    for title, path, old, new, test in breaks:
        path = os.path.join(COPY, path)
        with open(path) as file:
            good = file.read()
        if good.count(old) != 1:
            sys.exit(f"{title}: the text to break is there {good.count(old)} times in {path}")
        with open(path, "w") as file:
            file.write(good.replace(old, new))
        env = dict(os.environ, RUSTFLAGS="-Awarnings", RUST_BACKTRACE="0")
        words = test.split()
        settings = [word for word in words if "=" in word and not word.startswith("-")]
        env.update(word.split("=", 1) for word in settings)
        package, arguments = COPY, [word for word in words if word not in settings]
        if arguments[0] == "loom":
            package, arguments = os.path.join(COPY, "tests", "loom"), ["--lib", *arguments[1:]]
            env.update(RUSTFLAGS="--cfg loom",
                       CARGO_TARGET_DIR=os.path.join(COPY, "target", "loom"))
        built = subprocess.run(["cargo", "test", "--no-run", *arguments[:2]], cwd=package, env=env,
                               capture_output=True, text=True)
        if built.returncode != 0:
            print(built.stderr[-3000:])
            sys.exit(f"{title}: does not compile")
        run = subprocess.Popen(["cargo", "test", *arguments], cwd=package, env=env, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               start_new_session=True)
        try:
            output, _ = run.communicate(timeout=600)
            failed = [line.split()[1] for line in output.splitlines()
                      if line.startswith("test ") and line.endswith("FAILED")]
        except subprocess.TimeoutExpired:
            # The test itself too, not cargo alone.
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            failed = ["(hangs)"]
        with open(path, "w") as file:
            file.write(good)
        print(f"{'seen' if failed else 'UNSEEN':7} {title}: {', '.join(failed)}", flush=True)
        if not failed:
            unseen.append(title)
    print(f"{len(breaks) - len(unseen)} of {len(breaks)} breaks seen")
    sys.exit(1 if unseen else 0)


if __name__ == "__main__":
    main()
