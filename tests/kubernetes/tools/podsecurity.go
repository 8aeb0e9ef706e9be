// podsecurity: is every pod that the manifests on standard input would make allowed by the Pod Security Standard
// "restricted"? The same evaluator as in the API server. Prints a line for each workload; exit code 1: one is not.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"
)

// workload is what Deployments, StatefulSets, Jobs and CronJobs have in common, for reading.
type workload struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Template    *corev1.PodTemplateSpec `json:"template"`
		JobTemplate *struct {
			Spec struct {
				Template corev1.PodTemplateSpec `json:"template"`
			} `json:"spec"`
		} `json:"jobTemplate"`
	} `json:"spec"`
}

func (w workload) pod() *corev1.PodTemplateSpec {
	switch w.Kind {
	case "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job":
		return w.Spec.Template
	case "CronJob":
		if w.Spec.JobTemplate != nil {
			return &w.Spec.JobTemplate.Spec.Template
		}
	}
	return nil
}

func main() {
	allowed, err := check(os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "podsecurity:", err)
		os.Exit(2)
	}
	if !allowed {
		os.Exit(1)
	}
}

func check(manifests io.Reader, report io.Writer) (bool, error) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks())
	if err != nil {
		return false, err
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	documents := utilyaml.NewYAMLReader(bufio.NewReader(manifests))
	allAllowed := true
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return allAllowed, nil
		}
		if err != nil {
			return false, err
		}
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(document, &kind); err != nil {
			return false, err
		}
		if kind.Kind == "CustomResourceDefinition" {
			continue
		}
		var read workload
		if (workload{TypeMeta: kind}).mayHavePods() {
			if err := yaml.Unmarshal(document, &read); err != nil {
				return false, err
			}
		}
		pod := read.pod()
		if pod == nil {
			continue
		}
		result := policy.AggregateCheckResults(evaluator.EvaluatePod(restricted, &pod.ObjectMeta, &pod.Spec))
		verdict := "allowed"
		if !result.Allowed {
			verdict, allAllowed = "DENIED: "+result.ForbiddenDetail(), false
		}
		fmt.Fprintf(report, "%s/%s: %s\n", read.Kind, read.Name, verdict)
	}
}

func (w workload) mayHavePods() bool {
	switch w.Kind {
	case "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob":
		return true
	}
	return false
}
