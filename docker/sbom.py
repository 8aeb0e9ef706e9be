"""Writes the image's bill of materials, CycloneDX 1.5 in JSON, to standard output.

    sbom.py --packages ROOT/var/lib/dpkg/status.d --site SITE-PACKAGES --lock requirements.lock

Of what is in the image, not of what was asked for: Debian's packages by what dpkg says about them, Python's
by their metadata, with the hashes that the lock accepts. The same image gives the same text: no time, no
random number. Standard library only: it runs while the image is built.
"""

import argparse
import json
import re
import sys
import uuid
from importlib import metadata
from pathlib import Path

NAMESPACE = uuid.UUID("5f0b3c1e-7a53-4e0c-9c0e-1d3f6f1f2f60")


def debian(folder: Path) -> list[dict]:
    found = []
    for path in sorted(folder.iterdir()):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", path.read_text(), re.M))
        name, version = fields["Package"], fields["Version"]
        found.append(
            {
                "type": "library",
                "bom-ref": f"pkg:deb/debian/{name}@{version}?arch={fields['Architecture']}&distro=debian-12",
                "name": name,
                "version": version,
                "purl": f"pkg:deb/debian/{name}@{version}?arch={fields['Architecture']}&distro=debian-12",
            }
        )
    return found


def locked_hashes(lock: str) -> dict[str, list[str]]:
    """Name -> SHA-256 of every file that the lock accepts for it."""
    found = {}
    for entry in re.split(r"\n(?=\S)", lock):
        if match := re.match(r"([A-Za-z0-9._-]+)==", entry):
            found[normal(match[1])] = re.findall(r"sha256:([0-9a-f]{64})", entry)
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def python(sites: list[str], hashes: dict[str, list[str]]) -> list[dict]:
    found = {}
    for distribution in metadata.distributions(path=sites):
        name, version = normal(distribution.metadata["Name"]), distribution.version
        purl = f"pkg:pypi/{name}@{version}"
        component = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
        # One file of those was installed; which of them, a platform decides: they go in as a property each.
        component["properties"] = [
            {"name": "mini-visa:locked-sha256", "value": value} for value in hashes.get(name, [])
        ]
        found[name] = component
    return [found[name] for name in sorted(found)]


def document(packages: list[dict], libraries: list[dict]) -> dict:
    own = next(component for component in libraries if component["name"] == "mini-visa")
    components = packages + [component for component in libraries if component is not own]
    digest = json.dumps([own, components], sort_keys=True)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, digest)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": own["bom-ref"],
                "name": own["name"],
                "version": own["version"],
                "purl": own["purl"],
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        },
        "components": components,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--site", action="append", required=True)
    parser.add_argument("--lock", type=Path, required=True)
    given = parser.parse_args()
    made = document(debian(given.packages), python(given.site, locked_hashes(given.lock.read_text())))
    json.dump(made, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
