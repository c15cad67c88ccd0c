package cluster

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	ssmtypes "github.com/aws/aws-sdk-go-v2/service/ssm/types"

	"sevagent/internal/visible"
)

// Answer is a node's answer to a request for evidence.
type Answer struct {
	ID string
	// Nonce is the one that its evidence must carry.
	Nonce []byte
	// Document is unverified.
	Document []byte
	// Err says why there is no Document. Unasked: AWS would not let the node be asked.
	Err     error
	Unasked bool
}

const (
	// SendCommand takes no more instances by ID.
	commandBatch = 50
	// GetCommandInvocation returns the first 24,000 characters of the output. Evidence is 12 to 20 KB, and more with a
	// longer chain, so the node compresses it.
	outputLimit   = 24000
	answerTimeout = 2 * time.Minute
	pollInterval  = 500 * time.Millisecond
	pollSlowest   = 5 * time.Second
)

// Collect asks nodes for evidence through SSM Run Command and returns an answer for each, in the same order.
//
// Each node has a nonce of its own although one command goes to fifty: it is the hash of a fresh seed and the node's
// instance ID, which the node computes from the command and we from the ID that we asked.
//
// The script is in an SSM document of the cluster's stack, not in the command, so that the right to ask for evidence is
// no right to run commands.
func (in *Inspector) Collect(ctx context.Context, ids []string, maxDocument int64) []Answer {
	seed := rand.Text() + rand.Text() // 256 bits and more, in letters and digits
	answers := make([]Answer, len(ids))
	for i, id := range ids {
		answers[i] = Answer{ID: id, Nonce: nonce(seed, id)}
	}
	var wg sync.WaitGroup
	for batch := range slices.Chunk(answers, commandBatch) {
		wg.Go(func() { in.command(ctx, seed, batch, maxDocument) })
	}
	wg.Wait()
	return answers
}

// document returns the name of the SSM document EvidenceDocument of cloudformation/cluster.yaml, for the name or the
// ARN of its cluster.
func document(cluster string) string {
	return "sevagent-evidence-" + cluster[strings.LastIndexByte(cluster, '/')+1:]
}

const nonceLabel = "sevctl-verify-nonce"

// nonce computes what the document's script gives to sevagent.
func nonce(seed, id string) []byte {
	sum := sha256.Sum256([]byte(nonceLabel + ":" + seed + ":" + id))
	return sum[:]
}

// command sends one command to a batch and fills in its answers. SSM refuses the command as a whole if one of the
// instances is not managed; then each half of the batch is tried by itself.
func (in *Inspector) command(ctx context.Context, seed string, batch []Answer, maxDocument int64) {
	fail := func(err error) {
		for i := range batch {
			batch[i].Err = err
		}
	}
	ids := make([]string, len(batch))
	for i := range batch {
		ids[i] = batch[i].ID
	}
	out, err := askOnce(ctx, in, apiSend, in.ssm.SendCommand, &ssm.SendCommandInput{
		DocumentName: aws.String(document(in.cfg.Cluster)), InstanceIds: ids,
		Comment: aws.String("sevctl verify --attest"), Parameters: map[string][]string{"seed": {seed}},
		TimeoutSeconds: aws.Int32(60),
		MaxConcurrency: aws.String("100%"), MaxErrors: aws.String("100%"),
	})
	switch {
	case code(err) == "InvalidInstanceId" && len(batch) > 1:
		half := len(batch) / 2
		var wg sync.WaitGroup
		wg.Go(func() { in.command(ctx, seed, batch[:half], maxDocument) })
		in.command(ctx, seed, batch[half:], maxDocument)
		wg.Wait()
		return
	case code(err) == "InvalidInstanceId":
		fail(errors.New("SSM does not manage it, or has lost contact: is the SSM agent running, " +
			"with AmazonSSMManagedInstanceCore in the node's role and HTTPS open?"))
		return
	case err != nil:
		fail(fmt.Errorf("%s: %s", apiSend, brief(err)))
		if code(err) == "InvalidDocument" {
			fail(fmt.Errorf("there is no SSM document %s; update the cluster's stack with the cluster.yaml of this version",
				document(in.cfg.Cluster)))
		}
		for i := range batch {
			batch[i].Unasked = true
		}
		return
	}
	command := aws.ToString(out.Command.CommandId)
	timeout := cmp.Or(in.cfg.AnswerTimeout, answerTimeout)
	if err := in.wait(ctx, command, timeout); err != nil {
		fail(err)
		return
	}
	var wg sync.WaitGroup
	for i := range batch {
		wg.Go(func() { batch[i].Document, batch[i].Err = in.output(ctx, command, batch[i].ID, timeout, maxDocument) })
	}
	wg.Wait()
}

// wait returns when a command has ended on all its instances, or when they had time enough.
func (in *Inspector) wait(ctx context.Context, command string, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for pause := pollInterval; ; pause = min(pollSlowest, pause*3/2) {
		out, err := askOnce(ctx, in, apiCommands, in.ssm.ListCommands, &ssm.ListCommandsInput{CommandId: &command})
		if err != nil {
			return fmt.Errorf("%s: %s", apiCommands, brief(err))
		}
		if len(out.Commands) > 0 {
			switch out.Commands[0].Status {
			case ssmtypes.CommandStatusPending, ssmtypes.CommandStatusInProgress, ssmtypes.CommandStatusCancelling:
			default:
				return nil
			}
		}
		if time.Until(deadline) < pause {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// output fetches what the command printed on one instance.
func (in *Inspector) output(ctx context.Context, command, id string, timeout time.Duration, maxDocument int64) (
	[]byte, error) {
	out, err := askOnce(ctx, in, apiInvocation, in.ssm.GetCommandInvocation,
		&ssm.GetCommandInvocationInput{CommandId: &command, InstanceId: &id})
	if err != nil {
		return nil, fmt.Errorf("%s: %s", apiInvocation, brief(err))
	}
	switch out.Status {
	case ssmtypes.CommandInvocationStatusSuccess:
		return unpack(aws.ToString(out.StandardOutputContent), maxDocument)
	case ssmtypes.CommandInvocationStatusPending, ssmtypes.CommandInvocationStatusInProgress,
		ssmtypes.CommandInvocationStatusDelayed:
		return nil, fmt.Errorf("no answer within %v: the command is %s there", timeout, out.Status)
	}
	status := cmp.Or(aws.ToString(out.StatusDetails), string(out.Status))
	reason, _, _ := strings.Cut(strings.TrimSpace(aws.ToString(out.StandardErrorContent)), "\n")
	return nil, fmt.Errorf("the command has ended there with %s, exit status %d: %s",
		status, out.ResponseCode, cmp.Or(visible.Text(reason[:min(len(reason), 300)]), "it gave no reason"))
}

// unpack undoes what the document's script does. The text is the node's: hostile until verified.
func unpack(text string, maxDocument int64) ([]byte, error) {
	text = strings.TrimSpace(text)
	if len(text) >= outputLimit {
		return nil, fmt.Errorf("its output is cut off: %d characters", len(text))
	}
	packed, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("its output is not base64: %w", err)
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("its output is not gzip: %w", err)
	}
	doc, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("unpack its output: %w", err)
	}
	if int64(len(doc)) > maxDocument {
		return nil, fmt.Errorf("its output unpacks to more than %d bytes", maxDocument)
	}
	return doc, nil
}

// Attestation is the result of verifying one node's answer.
type Attestation struct {
	ID          string `json:"instance"`
	Status      Status `json:"status"`
	Reason      string `json:"reason,omitempty"`
	Nonce       string `json:"nonce,omitempty"`
	Measurement string `json:"measurement,omitempty"`
	TCB         string `json:"tcb,omitempty"`
	ReportID    string `json:"report_id,omitempty"`
	Roots       string `json:"roots,omitempty"`
	// Signed reports whether AWS has signed, by the node's NitroTPM and for this answer, that it is this instance's.
	Signed bool `json:"instance_signed"`
	// Image is a digest of what the instance was booted from, if it is signed.
	Image string `json:"image,omitempty"`
}

// Running lists the nodes to ask: those that run, or all of them if EC2 did not say.
func (s *Snapshot) Running() []string {
	var ids []string
	for _, n := range s.Nodes {
		if n.up() || n.Instance == nil && s.Failures[apiInstances] != nil {
			ids = append(ids, n.ID)
		}
	}
	return ids
}

var attestation = property{
	id: "attestation", title: "Nodes prove now that they are genuine SEV-SNP guests", things: "nodes",
	advice: "On the node, see 'sevagent status' and 'journalctl -u sevagent'. Drain and terminate a node that answers " +
		"and does not pass; for one that does not answer, see the SSM agent.",
}

// CheckAttestation compares the results of verifying the nodes' evidence with each other, and with what the nodes
// registered. It sets the status and the reason of those that do not fit.
func CheckAttestation(s *Snapshot, results []Attestation) Check {
	c := Check{ID: attestation.id, Title: attestation.title, Status: Pass, of: max(1, len(results)),
		good: fmt.Sprintf("%d verified here, each for a nonce of its own; %s", len(results), signed(results))}
	registered := make(map[string]string)
	for n := range s.nodes((*Node).joined) {
		registered[n.ID] = n.Container.Attributes[AttrMeasurement]
	}
	guests := make(map[string][]string) // by REPORT_ID
	for _, r := range results {
		if r.ReportID != "" && r.Accepted() {
			guests[r.ReportID] = append(guests[r.ReportID], r.ID)
		}
	}
	for i := range results {
		r := &results[i]
		others := slices.DeleteFunc(slices.Clone(guests[r.ReportID]), func(id string) bool { return id == r.ID })
		switch want := registered[r.ID]; {
		case !r.Accepted():
		case len(others) > 0: // any of them may be the genuine one
			r.Status = Fail
			r.Reason = fmt.Sprintf("its report is from the same guest (REPORT_ID) as that of %s: "+
				"one has answered for another", strings.Join(others, ", "))
		case want != "" && want != r.Measurement:
			r.Status = Fail
			r.Reason = fmt.Sprintf("its measurement is %s, not the %s of its attribute %s",
				short(r.Measurement), short(want), AttrMeasurement)
		}
		if r.Status != Pass {
			c.add(r.Status, r.ID, "%s", r.Reason)
		}
	}
	if len(results) == 0 {
		c.add(Fail, "cluster", "there was no node to ask, and so no proof")
	}
	// Nodes whose listing failed were not asked.
	for _, api := range []string{apiContainers, apiContainer, apiGroups} {
		if err := s.Failures[api]; err != nil {
			c.add(Unknown, "cluster", "there may be nodes that were not asked: %s: %s", api, brief(err))
			break
		}
	}
	attestation.summarize(s, &c)
	c.Advice = s.fill(c.Advice, &c)
	return c
}

// signed says for how many nodes nobody else can have answered.
func signed(results []Attestation) string {
	n := 0
	for _, r := range results {
		if r.Signed && r.Accepted() {
			n++
		}
	}
	switch n {
	case 0:
		return "none has a NitroTPM, by which AWS signs which instance has answered"
	case len(results):
		return "AWS has signed which instance has answered"
	}
	return fmt.Sprintf("for %d of them AWS has signed which instance has answered", n)
}

// Accepted reports whether the node's evidence may be relied on.
func (a *Attestation) Accepted() bool { return a.Status == Pass || a.Status == Warn }

// Hex is a nonce as sevagent takes it.
func (a Answer) Hex() string { return hex.EncodeToString(a.Nonce) }
