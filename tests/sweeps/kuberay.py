"""The fields of a KubeRay RayJob that a sweep needs, closed, so that a misspelt one fails.

From KubeRay's reference of `ray.io/v1`, release 1.6 (docs.ray.io, "KubeRay CRD API reference": RayJobSpec,
RayClusterSpec, AuthOptions, HeadGroupSpec, WorkerGroupSpec) and Kubernetes' of core/v1 (PodSpec, Container,
Volume, PersistentVolumeClaimSpec). Names and types are theirs; fields that no file here uses are left out.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

Quantity = Annotated[str, Field(pattern=r"^[0-9.]+([EPTGMk]i?|m)?$")]
StartParams = dict[StrictStr, StrictStr]  # Go's map[string]string: an unquoted number is refused


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Metadata(Closed):
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?$")]  # a RayJob's: 47 letters


class Claim(Closed):
    claimName: str


class EmptyDir(Closed):
    medium: Literal["", "Memory"] = ""
    sizeLimit: Quantity | None = None


class Volume(Closed):
    name: str
    persistentVolumeClaim: Claim | None = None
    emptyDir: EmptyDir | None = None


class VolumeMount(Closed):
    name: str
    mountPath: str


class EnvVar(Closed):
    name: StrictStr
    value: StrictStr


class Resources(Closed):
    requests: dict[str, Quantity]
    limits: dict[str, Quantity] = {}


class Container(Closed):
    name: str
    image: str
    resources: Resources
    env: list[EnvVar] = []
    volumeMounts: list[VolumeMount] = []


class Toleration(Closed):
    key: str
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class PodSpec(Closed):
    containers: list[Container]
    volumes: list[Volume] = []
    tolerations: list[Toleration] = []
    nodeSelector: dict[str, str] = {}


class PodTemplate(Closed):
    spec: PodSpec


class HeadGroup(Closed):
    rayStartParams: StartParams
    template: PodTemplate


class WorkerGroup(Closed):
    groupName: str
    replicas: StrictInt = 0
    minReplicas: StrictInt
    maxReplicas: StrictInt
    rayStartParams: StartParams
    template: PodTemplate


class AuthOptions(Closed):
    mode: Literal["disabled", "token"]


class RayClusterSpec(Closed):
    rayVersion: StrictStr
    authOptions: AuthOptions | None = None
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] = []


class RayJobSpec(Closed):
    entrypoint: str
    backoffLimit: StrictInt = 0
    shutdownAfterJobFinishes: StrictBool = False
    ttlSecondsAfterFinished: StrictInt = 0
    activeDeadlineSeconds: StrictInt | None = None
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] = "K8sJobMode"
    rayClusterSpec: RayClusterSpec


class RayJob(Closed):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


class ClaimSpec(Closed):
    accessModes: list[Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]]
    storageClassName: str
    resources: Resources


class PersistentVolumeClaim(Closed):
    apiVersion: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    metadata: Metadata
    spec: ClaimSpec
