package fleet

import (
	"time"

	"sevagent/internal/awsconfig"
	"sevagent/internal/config"
)

// Default quotas of an account in a region, read on 2026-12-01. docs/scale.md names the pages.
var (
	describeSecret    = Quota{Rate: 40_000}
	getSecretValue    = Quota{Rate: 10_000}
	issueCertificate  = Quota{Rate: 25}
	getCertificate    = Quota{Rate: 75}
	getCACertificate  = Quota{Rate: 20}
	describeClusters  = Quota{Rate: 20, Burst: 50}   // with ListClusters
	registerInstance  = Quota{Rate: 120, Burst: 200} // with the Submit… calls of the ECS agent
	launchedInstances = Quota{Rate: 2, Burst: 1000}
	certificatesOfAMD = Quota{Rate: 0.1, Burst: 1} // of one address, as observed
)

const (
	// nodesOfCluster is ECS's quota of container instances in a cluster.
	nodesOfCluster = 5000
	// runConcurrency is Run Command's default, which EventBridge cannot change.
	runConcurrency = 50

	// pushDelay is assumed from a new version to the command's first node.
	pushDelay = 3 * time.Second
)

// What is assumed where AWS publishes nothing.
var (
	pushHold  = [2]time.Duration{time.Second, 3 * time.Second}                    // a command's place on a node
	issuance  = [2]time.Duration{500 * time.Millisecond, 3500 * time.Millisecond} // from order to certificate
	bootTimes = [2]time.Duration{20 * time.Second, 40 * time.Second}              // to bootstrap's first call
	fleets    = []int{10, 1000, 100_000}
)

const (
	seed = 1
	// warmUp is how long a fleet polls before something happens.
	warmUp = 6 * time.Minute
	rotate = 7 * time.Minute
)

// secretsFleet returns a fleet with the product's settings.
func secretsFleet(nodes int) Secrets {
	return Secrets{
		Nodes: nodes, Interval: config.Default().MTLS.PollInterval, Retryer: awsconfig.Retryer(),
		Describe: describeSecret, Get: getSecretValue, Begin: warmUp, End: rotate + 7*time.Minute, Seed: seed,
		Bin: 5 * time.Second,
	}
}

// ordinary is a time in which nothing happens.
func ordinary(nodes int) Secrets {
	f := secretsFleet(nodes)
	f.End = warmUp + 30*time.Minute
	return f
}

// aging is a fleet whose certificate of 90 days was not replaced: it is in the last tenth of its life.
func aging(nodes int) Secrets {
	f := secretsFleet(nodes)
	f.Life, f.Age = 90*24*time.Hour, 85*24*time.Hour
	f.End = warmUp + 2*time.Minute
	return f
}

// polled is a rotation that nothing announces.
func polled(nodes int) Secrets {
	f := secretsFleet(nodes)
	f.Rotated = rotate
	return f
}

// scheduled is a rotation at the time that the secret's schedule names.
func scheduled(nodes int) Secrets {
	f := polled(nodes)
	f.Announced = true
	return f
}

// pushed is a rotation of which the nodes hear by Run Command.
func pushed(nodes int, p Push) Secrets {
	f := polled(nodes)
	f.Push = &p
	return f
}

// outage is half an hour without the region's APIs, in which the secret rotates.
func outage(nodes int) Secrets {
	f := secretsFleet(nodes)
	f.Outage = [2]moment{warmUp, warmUp + 30*time.Minute}
	f.Rotated = warmUp + 10*time.Minute
	f.End = f.Outage[1] + 7*time.Minute
	return f
}

// issuingFleet returns a fleet with certificates of a day.
func issuingFleet(nodes int) Issuing {
	return Issuing{
		Nodes: nodes, Life: 24 * time.Hour, Issue: issueCertificate, Collect: getCertificate, Takes: issuance,
		Begin: time.Hour, End: 25 * time.Hour, Seed: seed, Bin: time.Minute,
	}
}

// withoutCA is an outage of the CA. What is measured begins when it ends.
func withoutCA(nodes int, length time.Duration) Issuing {
	f := issuingFleet(nodes)
	f.Outage = [2]moment{6 * time.Hour, 6*time.Hour + length}
	f.Begin, f.End = f.Outage[1], f.Outage[1]+8*time.Hour
	return f
}

// reconfigured is a fleet whose entry of mtls.issue changes everywhere at once.
func reconfigured(nodes int) Issuing {
	f := issuingFleet(nodes)
	f.Began, f.Begin, f.End = 6*time.Hour, 6*time.Hour, 8*time.Hour
	return f
}

// boots is a fleet that EC2 launches as fast as it does, into clusters that stand, or, if young, into one whose
// capacity provider is listed two minutes after the launch.
func boots(nodes int, issues, young bool) Boots {
	f := Boots{
		Nodes: nodes, Launches: launchedInstances, Boot: bootTimes, Issues: issues, Takes: issuance,
		Describe: describeSecret, Get: getSecretValue,
		Read: getCACertificate, Issue: issueCertificate, Collect: getCertificate,
		Clusters: describeClusters, Register: registerInstance, End: 24 * time.Hour, Seed: seed, Bin: 2 * time.Second,
	}
	if young {
		f.Listed = 2 * time.Minute
	}
	return f
}
