"""Writing a directory: plan, numbered parts, images stored once, a journal to resume from, and publishing whole.

Images and part records are written aside and renamed here, not by `files.write_whole`: a sync for each of a million
small files would take hours. All are synced once before the set is published (`files.sync_disk`), and what an earlier
boot of the machine wrote is checked before a run resumes from it.
"""
